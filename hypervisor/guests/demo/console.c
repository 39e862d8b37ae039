/* The console: the PV ring (public/io/console.h) and, before there is one, Xen's emergency console. */
#include "kernel.h"

enum { TYPED = 256, CONTROL_C = 3, PATIENCE_MS = 1000 };

bool interrupted;
static volatile struct console_ring *ring;
static uint32_t port;
static char typed[TYPED];
static uint32_t typed_start, typed_end;
static bool dead;

/* Moves what was typed to where the shell takes it, and sees Ctrl-C at once; what has no room stays in the ring. */
static void console_event(void *unused)
{
    (void)unused;
    uint32_t consumer = ring->in_consumer, start = consumer;
    while (consumer != ring->in_producer && typed_end - typed_start < TYPED) {
        char character = ring->in[consumer++ % sizeof ring->in];
        if (character == CONTROL_C) {
            interrupted = true;
            typed_start = typed_end;
        } else {
            typed[typed_end++ % TYPED] = character;
        }
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ring->in_consumer = consumer;
    if (ring->in_producer - start >= sizeof ring->in && consumer != start) /* it was full, so somebody may wait */
        event_send(port);
}

/* Finds the ring; after a resume, again. Without one, text goes to the emergency console only. */
void console_start(void)
{
    uint64_t frame = 0, event = 0;
    ring = NULL;
    if (!hvm_param(HVM_PARAM_CONSOLE_PFN, &frame) || !hvm_param(HVM_PARAM_CONSOLE_EVTCHN, &event) || !frame || !event)
        return;
    ring = frame_address(frame);
    port = (uint32_t)event;
    dead = false;
    event_bind(port, console_event, NULL);
    console_event(NULL);
}

/* Returns what was typed next, or -1. */
int console_read(void)
{
    if (typed_start == typed_end)
        return -1;
    bool was_full = typed_end - typed_start == TYPED;
    int character = (uint8_t)typed[typed_start++ % TYPED];
    if (was_full)
        console_event(NULL);
    return character;
}

void console_flush(void)
{
    if (ring && ring->out_producer != ring->out_consumer)
        event_send(port);
}

static bool has_room(void)
{
    return ring->out_producer - ring->out_consumer < sizeof ring->out;
}

/* Waits for room, but not for ever: a console that nobody reads loses its text. */
static bool make_room(void)
{
    if (has_room())
        return true;
    event_send(port);
    dead = dead ? !has_room() : !event_wait(has_room, now() + PATIENCE_MS * MILLISECONDS);
    return !dead;
}

static void write(const char *text, uint32_t length)
{
    if (!ring) {
        hypercall(HYPERCALL_CONSOLE, 0, (long)length, text);
        return;
    }
    for (uint32_t at = 0; at < length && make_room(); at++) {
        uint32_t producer = ring->out_producer;
        ring->out[producer % sizeof ring->out] = text[at];
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        ring->out_producer = producer + 1;
    }
}

/* Prints up to 1023 characters; `console_flush` tells the other side, and every wait does. */
void print(const char *form, ...)
{
    static char text[1024];
    __builtin_va_list values;
    __builtin_va_start(values, form);
    int length = format_list(text, sizeof text, form, values);
    __builtin_va_end(values);
    write(text, (uint32_t)length);
}
