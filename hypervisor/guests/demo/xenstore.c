/* The way to xenstore (public/io/xs_wire.h): one request at a time, and watches.
 *
 * While an answer is awaited only this ring is looked at, so requests may be made from everywhere. Watch events
 * are noted as they come, and `watches_run` calls their functions from the main loop. A store that does not answer
 * is given up: every request fails then. */
#include "kernel.h"

enum { WATCHES = 64, PATIENCE_SECONDS = 5, PATH_MAX = 256 };

uint32_t domid;
static volatile struct xs_ring *ring;
static uint32_t port, last_request, current_transaction;
static bool dead, answered, any_fired;
static struct xs_header incoming, answer;
static uint32_t received;
static char payload[XS_PAYLOAD_MAX + 1], answer_text[XS_PAYLOAD_MAX + 1];
static struct watch *watches[WATCHES];

bool store_usable(void)
{
    return ring && !dead;
}

/* An event's payload is the path and our token, which is the watch's place in the table. */
static void take_event(void)
{
    uint64_t number;
    size_t length = strlen(payload);
    if (length + 1 >= incoming.length || !parse_number(payload + length + 1, &number) || number >= WATCHES)
        return;
    struct watch *watch = watches[number];
    if (!watch)
        return;
    if (watch->each)
        watch->changed(watch, payload);
    else
        watch->fired = any_fired = true;
}

static void take_message(void)
{
    payload[incoming.length] = 0;
    received = 0;
    if (incoming.type == XS_WATCH_EVENT) {
        take_event();
    } else if (incoming.request == last_request) {
        answer = incoming;
        memcpy(answer_text, payload, incoming.length + 1);
        answered = true;
    }
}

/* Takes what is in the ring of replies. */
static void store_event(void *unused)
{
    (void)unused;
    uint32_t consumer = ring->reply_consumer, start = consumer;
    while (consumer != ring->reply_producer && !dead) {
        char byte = ring->reply[consumer++ % XS_RING];
        if (received < sizeof incoming)
            ((char *)&incoming)[received++] = byte;
        else
            payload[received++ - sizeof incoming] = byte;
        if (received >= sizeof incoming) {
            dead = incoming.length > XS_PAYLOAD_MAX;
            if (received == sizeof incoming + incoming.length && !dead)
                take_message();
        }
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ring->reply_consumer = consumer;
    if (ring->reply_producer - start >= XS_RING) /* it was full, so somebody may wait */
        event_send(port);
}

static bool has_reply(void)
{
    return ring->reply_consumer != ring->reply_producer;
}

static bool has_room(void)
{
    return has_reply() || ring->request_producer - ring->request_consumer < XS_RING;
}

static void send(const void *data, uint32_t length, uint64_t deadline)
{
    const char *bytes = data;
    for (uint32_t at = 0; at < length && !dead;) {
        uint32_t producer = ring->request_producer;
        if (producer - ring->request_consumer >= XS_RING) {
            event_send(port);
            store_event(NULL);
            dead |= !event_wait(has_room, deadline);
            continue;
        }
        ring->request[producer % XS_RING] = bytes[at++];
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        ring->request_producer = producer + 1;
    }
}

/* Sends a request whose payload is two parts, and waits; returns whether it succeeded: see `answer`. */
static bool request(uint32_t type, const void *first, uint32_t first_length, const void *second, uint32_t second_length)
{
    struct xs_header header = {type, ++last_request, current_transaction, first_length + second_length};
    uint64_t deadline = now() + PATIENCE_SECONDS * NANOSECONDS;
    answered = false;
    answer.type = XS_ERROR;
    answer.length = 0;
    format(answer_text, sizeof answer_text, "EIO");
    if (!store_usable())
        return false;
    send(&header, sizeof header, deadline);
    send(first, first_length, deadline);
    send(second, second_length, deadline);
    if (!dead)
        event_send(port);
    for (store_event(NULL); !answered && !dead; store_event(NULL))
        dead |= !event_wait(has_reply, deadline);
    return answered && answer.type == type;
}

/* The name of the last error, such as ENOENT. */
const char *store_error(void)
{
    return answer_text;
}

/* Reads a value, cut to `size`; returns its length or -1. */
int store_get(char *value, size_t size, const char *form, ...)
{
    char path[PATH_MAX];
    __builtin_va_list values;
    __builtin_va_start(values, form);
    format_list(path, sizeof path, form, values);
    __builtin_va_end(values);
    value[0] = 0;
    if (!request(XS_READ, path, (uint32_t)strlen(path) + 1, NULL, 0))
        return -1;
    return format(value, size, "%s", answer_text);
}

uint64_t store_get_number(uint64_t missing, const char *form, ...)
{
    char path[PATH_MAX];
    uint64_t number;
    __builtin_va_list values;
    __builtin_va_start(values, form);
    format_list(path, sizeof path, form, values);
    __builtin_va_end(values);
    if (!request(XS_READ, path, (uint32_t)strlen(path) + 1, NULL, 0) || !parse_number(answer_text, &number))
        return missing;
    return number;
}

bool store_put(const char *value, const char *form, ...)
{
    char path[PATH_MAX];
    __builtin_va_list values;
    __builtin_va_start(values, form);
    format_list(path, sizeof path, form, values);
    __builtin_va_end(values);
    return request(XS_WRITE, path, (uint32_t)strlen(path) + 1, value, (uint32_t)strlen(value));
}

bool store_remove(const char *path)
{
    return request(XS_RM, path, (uint32_t)strlen(path) + 1, NULL, 0);
}

/* Lists a directory's names, each ended by a zero; returns how many bytes, or -1. What has no room is left out. */
int store_list(const char *path, char *names, size_t size)
{
    if (!request(XS_DIRECTORY, path, (uint32_t)strlen(path) + 1, NULL, 0))
        return -1;
    size_t length = 0;
    for (size_t at = 0; at < answer.length; at += strlen(answer_text + at) + 1)
        if (at + strlen(answer_text + at) + 1 <= size)
            length = at + strlen(answer_text + at) + 1;
    memcpy(names, answer_text, length);
    return (int)length;
}

/* Begins a transaction and returns its number; 0 when that fails. `store_in` makes requests part of it. */
uint32_t store_begin(void)
{
    uint64_t number;
    return request(XS_TRANSACTION_START, "", 1, NULL, 0) && parse_number(answer_text, &number) ? (uint32_t)number : 0;
}

void store_in(uint32_t transaction)
{
    current_transaction = transaction;
}

/* Ends the transaction; false when it must be done again, or nothing works. */
bool store_end(uint32_t transaction, bool commit)
{
    current_transaction = transaction;
    bool okay = request(XS_TRANSACTION_END, commit ? "T" : "F", 2, NULL, 0);
    current_transaction = 0;
    return okay;
}

static bool watch_request(uint32_t type, uint32_t number)
{
    char token[12];
    format(token, sizeof token, "%u", number);
    return request(type, watches[number]->path, (uint32_t)strlen(watches[number]->path) + 1, token,
                   (uint32_t)strlen(token) + 1);
}

/* Sets a watch; it fires once at the beginning. False when the table is full or the store refuses. */
bool watch_add(struct watch *watch)
{
    for (uint32_t number = 0; number < WATCHES; number++)
        if (!watches[number]) {
            watches[number] = watch;
            watch->set = watch_request(XS_WATCH, number);
            if (!watch->set)
                watches[number] = NULL;
            return watch->set;
        }
    return false;
}

void watch_remove(struct watch *watch)
{
    for (uint32_t number = 0; number < WATCHES; number++)
        if (watches[number] == watch) {
            watch_request(XS_UNWATCH, number);
            watches[number] = NULL;
        }
    watch->set = watch->fired = false;
}

/* Calls the functions of watches that fired; tells whether any did. */
bool watches_run(void)
{
    bool any = any_fired;
    while (any_fired) {
        any_fired = false;
        for (uint32_t number = 0; number < WATCHES; number++) {
            struct watch *watch = watches[number];
            if (watch && watch->fired) {
                watch->fired = false;
                watch->changed(watch, watch->path);
            }
        }
    }
    return any;
}

/* Finds the ring; without one, or without an answer, the guest goes on alone. */
void store_start(void)
{
    uint64_t frame = 0, event = 0;
    char text[16];
    uint64_t number;
    ring = NULL;
    received = 0;
    if (!hvm_param(HVM_PARAM_STORE_PFN, &frame) || !hvm_param(HVM_PARAM_STORE_EVTCHN, &event) || !frame || !event)
        return;
    ring = frame_address(frame);
    port = (uint32_t)event;
    dead = false;
    event_bind(port, store_event, NULL);
    if (store_get(text, sizeof text, "domid") >= 0 && parse_number(text, &number))
        domid = (uint32_t)number;
}

/* In a new domain the store knows none of our watches; the ring is found by `store_start`. */
void watches_resume(void)
{
    for (uint32_t number = 0; number < WATCHES; number++)
        if (watches[number])
            watches[number]->set = watch_request(XS_WATCH, number);
}
