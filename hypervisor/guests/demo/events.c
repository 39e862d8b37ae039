/* Event channels, the 2-level ABI (public/event_channel.h): ports, and the function that each one calls.
 *
 * The interrupt only notes that there is something (entry.S); functions run from `poll`, never in between. */
#include "kernel.h"

enum { PORTS = 4096, BOUND = 64 };

volatile bool events_raised;
static uint64_t collected[64], collected_words;
static struct {
    uint32_t port;
    event_function function;
    void *argument;
} bound[BOUND];

void events_start(void)
{
    for (uint32_t word = 0; word < COUNT_OF(shared_info_page.mask); word++)
        shared_info_page.mask[word] = UINT64_MAX;
    events_on();
}

/* After a restore Xen knows no port of ours any more. */
void events_forget(void)
{
    memset(bound, 0, sizeof bound);
    memset(collected, 0, sizeof collected);
    collected_words = 0;
}

static void call(uint32_t port)
{
    for (uint32_t at = 0; at < BOUND; at++)
        if (bound[at].port == port && bound[at].function) {
            bound[at].function(bound[at].argument);
            return;
        }
}

/* Moves what is pending out of the shared page, so that the next event interrupts again. */
static void collect(void)
{
    struct shared_info *shared = &shared_info_page;
    while (events_raised) {
        events_raised = false;
        uint64_t words = __atomic_exchange_n(&shared->vcpu[0].pending_selector, 0, __ATOMIC_SEQ_CST);
        for (; words; words &= words - 1) {
            uint32_t word = (uint32_t)__builtin_ctzl(words);
            uint64_t ports = __atomic_load_n(&shared->pending[word], __ATOMIC_SEQ_CST) & ~shared->mask[word];
            __atomic_and_fetch(&shared->pending[word], ~ports, __ATOMIC_SEQ_CST);
            collected[word] |= ports;
            collected_words |= ports ? 1ul << word : 0;
        }
    }
}

/* Calls the functions of all ports that have events; tells whether there were any. */
bool events_deliver(void)
{
    bool any = false;
    for (collect(); collected_words; collect(), any = true) {
        uint32_t word = (uint32_t)__builtin_ctzl(collected_words);
        uint64_t ports = collected[word];
        collected[word] = 0;
        collected_words &= collected_words - 1;
        for (; ports; ports &= ports - 1)
            call(word * 64 + (uint32_t)__builtin_ctzl(ports));
    }
    return any;
}

/* Waits until something is so, which an event will tell, without calling any port's function; false when late. */
bool event_wait(bool (*ready)(void), uint64_t deadline)
{
    for (;;) {
        collect();
        if (ready())
            return true;
        if (now() >= deadline)
            return false;
        timer_arm(deadline);
        events_off();
        if (!events_raised)
            events_on_and_halt();
        events_on();
    }
}

/* Has a function called on each event of a port. The guest crashes when it has too many. */
void event_bind(uint32_t port, event_function function, void *argument)
{
    for (uint32_t at = 0; at < BOUND; at++)
        if (!bound[at].function) {
            bound[at].port = port;
            bound[at].function = function;
            bound[at].argument = argument;
            hypercall(HYPERCALL_EVENT, EVTCHNOP_UNMASK, &port);
            return;
        }
    print("panic: out of event channels\r\n");
    shut_down(SHUTDOWN_CRASH);
}

/* Makes a port for domain 0 to connect to; 0 when Xen refuses. */
uint32_t event_allocate(event_function function, void *argument)
{
    struct {
        uint16_t domid, remote;
        uint32_t port;
    } request = {DOMID_SELF, 0, 0};
    if (hypercall(HYPERCALL_EVENT, EVTCHNOP_ALLOC_UNBOUND, &request))
        return 0;
    event_bind(request.port, function, argument);
    return request.port;
}

uint32_t event_bind_timer(event_function function)
{
    struct {
        uint32_t virq, vcpu, port;
    } request = {VIRQ_TIMER, 0, 0};
    if (hypercall(HYPERCALL_EVENT, EVTCHNOP_BIND_VIRQ, &request))
        return 0;
    event_bind(request.port, function, NULL);
    return request.port;
}

/* Gives a port up; harmless when it is not ours any more: after a resume it may be another's. */
void event_close(uint32_t port)
{
    for (uint32_t at = 0; at < BOUND; at++)
        if (bound[at].port == port && bound[at].function) {
            bound[at].function = NULL;
            hypercall(HYPERCALL_EVENT, EVTCHNOP_CLOSE, &port);
        }
}

void event_send(uint32_t port)
{
    hypercall(HYPERCALL_EVENT, EVTCHNOP_SEND, &port);
}
