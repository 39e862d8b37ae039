/* Time and timers: Xen's system time from the time stamp counter (public/xen.h, vcpu_time_info).
 *
 * System time begins again when the domain is restored; `offset` makes the guest's own time go on. */
#include "kernel.h"

static int64_t offset;
static uint64_t armed, last;
static struct timer *timers;

static uint64_t system_time(void)
{
    const volatile struct vcpu_time_info *time = &shared_info_page.vcpu[0].time;
    uint32_t version, low, high;
    uint64_t result;
    do {
        version = time->version;
        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
        uint64_t ticks = ((uint64_t)high << 32 | low) - time->tsc_timestamp;
        ticks = time->shift < 0 ? ticks >> -time->shift : ticks << time->shift;
        result = time->system_time + (uint64_t)((unsigned __int128)ticks * time->multiplier >> 32);
    } while (version & 1 || version != time->version);
    return result;
}

uint64_t now(void)
{
    return last = system_time() + (uint64_t)offset;
}

/* Nanoseconds since 1970: the wall clock tells when system time was 0. */
uint64_t wall_clock(void)
{
    const volatile struct shared_info *shared = &shared_info_page;
    uint64_t seconds = (uint64_t)shared->wall_seconds_high << 32 | shared->wall_seconds;
    return seconds * NANOSECONDS + shared->wall_nanoseconds + system_time();
}

static void timer_event(void *unused)
{
    (void)unused; /* to wake up is all: the main loop looks at the timers */
}

void clock_start(void)
{
    event_bind_timer(timer_event);
    offset = -(int64_t)system_time();
}

/* Goes on at the time of the suspend; ports are bound anew. */
void clock_resume(void)
{
    event_bind_timer(timer_event);
    armed = 0;
    offset = (int64_t)(last - system_time());
}

void timer_add(struct timer *timer)
{
    timer->next = timers;
    timers = timer;
}

/* Calls what is due; tells whether anything was. */
bool timers_run(void)
{
    bool any = false;
    uint64_t time = now();
    for (struct timer *timer = timers; timer; timer = timer->next)
        if (timer->when && timer->when <= time) {
            timer->when = 0;
            timer->due(timer->argument);
            any = true;
        }
    return any;
}

/* The time of the next timer; UINT64_MAX when none is armed. */
uint64_t timers_next(void)
{
    uint64_t next = UINT64_MAX;
    for (struct timer *timer = timers; timer; timer = timer->next)
        if (timer->when && timer->when < next)
            next = timer->when;
    return next;
}

/* Has an event come at a time; one that is armed for earlier stays, and wakes us for nothing once. */
void timer_arm(uint64_t when)
{
    struct {
        uint64_t when;
        uint32_t flags;
    } request = {when - (uint64_t)offset, 0};
    if (when == UINT64_MAX || (armed > now() && armed <= when))
        return;
    armed = when;
    hypercall(HYPERCALL_VCPU, VCPUOP_SET_SINGLESHOT_TIMER, 0, &request);
}
