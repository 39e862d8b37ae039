/* The demo guest of Kronos: a small Xen guest with a shell on its console.
 *
 * One CPU, one stack. Interrupts only note that events have come; `poll` then calls what was registered for them:
 * rings, watches, timers, devices, the balloon. Whoever has to wait does so in `wait_for`, which polls, so that
 * everything goes on while a command waits; requests to xenstore wait for that alone (xenstore.c). */
#include "net.h"

enum { DEVICE_PATIENCE_MS = 500 };

void kernel_main(const struct hvm_start_info *info);

/* Does all that is to do now. What is done may ask for more, by way of a watch that fired meanwhile. */
void poll(void)
{
    bool more;
    do {
        more = events_deliver();
        more |= watches_run();
        more |= xenbus_work();
        more |= timers_run();
        more |= balloon_work();
    } while (more);
}

/* Halts until something happens, at most until a time. */
void idle(uint64_t until)
{
    uint64_t next = timers_next();
    console_flush();
    timer_arm(next < until ? next : until);
    events_off();
    if (!events_raised)
        events_on_and_halt();
    events_on();
}

/* Waits for something, at most some time or until Ctrl-C; tells whether it came true. UINT64_MAX: for ever, and
 * Ctrl-C does not count. */
bool wait_for(bool (*done)(void *argument), void *argument, uint64_t nanoseconds)
{
    bool for_ever = nanoseconds == UINT64_MAX;
    uint64_t end = for_ever ? UINT64_MAX : now() + nanoseconds;
    for (;;) {
        poll();
        if (done(argument))
            return true;
        if (!for_ever && (now() >= end || interrupted))
            return false;
        idle(end);
    }
}

static bool never(void *unused)
{
    (void)unused;
    return false;
}

void pause_for(uint64_t nanoseconds)
{
    wait_for(never, NULL, nanoseconds);
}

void kernel_main(const struct hvm_start_info *info)
{
    traps_start();
    if (!platform_start() || info->magic != HVM_START_MAGIC)
        triple_fault();
    memory_start(info);
    kernel_run();
}

/* All that comes after the start, of either kind. */
void kernel_run(void)
{
    platform_map_shared();
    events_start();
    clock_start();
    console_start();
    store_start();
    power_start();
    balloon_start();
    xenbus_start();
    settings_start();
    metrics_start();
    wait_for(xenbus_settled, NULL, DEVICE_PATIENCE_MS * MILLISECONDS);
    print("Kronos demo guest %s, domain %u, %lu KiB\r\n", VERSION, domid, memory_frames * 4);
    shell();
}
