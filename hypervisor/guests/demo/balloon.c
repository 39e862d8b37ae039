/* The balloon: frames that the guest gives back to Xen until the toolstack lets it have them again.
 *
 * The toolstack writes what the guest should hold, in KiB, to memory/target; the difference to what it holds is
 * given or taken in the main loop, a batch at a time. Frames that are out are kept in pages of numbers, each page
 * a frame that the guest keeps. */
#include "kernel.h"

enum { BATCH = 512, PER_PAGE = PAGE / 8 - 1 };

/* A page of extents that are out: number of the first frame, with the order in the low bits of its address. */
struct page {
    struct page *below;
    uint64_t extents[PER_PAGE];
};

struct stack {
    struct page *pages;
    uint32_t count; /* in the top page */
};

uint64_t balloon_target;
static bool unsettled;
static struct stack out[2]; /* of order 0 and 9 */
static const uint32_t orders[2] = {0, 9};
static uint64_t batch[BATCH];
static struct watch watch;
static struct timer retry;

uint64_t balloon_current(void)
{
    uint16_t self = DOMID_SELF;
    long frames = hypercall(HYPERCALL_MEMORY, XENMEM_CURRENT_RESERVATION, &self);
    return frames > 0 ? (uint64_t)frames : memory_frames;
}

static void push(struct stack *stack, uint64_t frame)
{
    if (!stack->pages || stack->count == PER_PAGE) {
        struct page *page = frame_address(frame_take());
        page->below = stack->pages;
        stack->pages = page;
        stack->count = 0;
    }
    stack->pages->extents[stack->count++] = frame;
}

static bool pop(struct stack *stack, uint64_t *frame)
{
    if (!stack->pages)
        return false;
    *frame = stack->pages->extents[--stack->count];
    if (!stack->count) {
        struct page *page = stack->pages;
        stack->pages = page->below;
        stack->count = PER_PAGE;
        frame_give((uint64_t)page / PAGE);
    }
    return true;
}

static long exchange(uint32_t operation, uint32_t order, uint64_t count)
{
    struct memory_reservation request = {batch, count, order, 0, DOMID_SELF};
    return hypercall(HYPERCALL_MEMORY, (long)operation, &request);
}

static void give_frames(uint64_t first, uint32_t order)
{
    for (uint64_t frame = first; frame < first + (1ul << order); frame++)
        frame_give(frame);
}

/* Gives back up to `frames`; returns how many went. */
static uint64_t inflate(uint64_t frames, uint32_t kind)
{
    uint64_t count = 0, top = UINT64_MAX;
    while (count < BATCH && (count + 1) << orders[kind] <= frames) {
        uint64_t frame = frames_take_high(&top, orders[kind]);
        if (!frame)
            break;
        batch[count++] = frame;
    }
    long done = count ? exchange(XENMEM_DECREASE_RESERVATION, orders[kind], count) : 0;
    done = done < 0 ? 0 : done;
    for (uint64_t at = 0; at < count; at++)
        if (at < (uint64_t)done)
            push(&out[kind], batch[at]);
        else
            give_frames(batch[at], orders[kind]);
    return (uint64_t)done << orders[kind];
}

/* Takes up to `frames` again; returns how many came. */
static uint64_t deflate(uint64_t frames, uint32_t kind)
{
    uint64_t count = 0;
    while (count < BATCH && (count + 1) << orders[kind] <= frames && pop(&out[kind], &batch[count]))
        count++;
    long done = count ? exchange(XENMEM_POPULATE_PHYSMAP, orders[kind], count) : 0;
    done = done < 0 ? 0 : done;
    for (uint64_t at = 0; at < count; at++)
        if (at < (uint64_t)done)
            give_frames(batch[at], orders[kind]);
        else
            push(&out[kind], batch[at]);
    return (uint64_t)done << orders[kind];
}

/* Breaks an extent of order 9 that is out into single frames that are: to take back less than it has. */
static bool split(void)
{
    uint64_t first;
    if (!pop(&out[1], &first))
        return false;
    for (uint64_t frame = first; frame < first + 512; frame++)
        push(&out[0], frame);
    return true;
}

/* Does a batch; returns whether there is more to do now. What cannot be had is tried again in a second. */
bool balloon_work(void)
{
    if (!unsettled || retry.when)
        return false;
    uint64_t current = balloon_current(), moved;
    if (current > balloon_target)
        moved = inflate(current - balloon_target, 1) ?: inflate(current - balloon_target, 0);
    else if (current < balloon_target)
        moved = deflate(balloon_target - current, 1) ?: deflate(balloon_target - current, 0) ?: split();
    else
        return unsettled = false;
    if (!moved)
        retry.when = now() + NANOSECONDS;
    return moved;
}

void balloon_set(uint64_t frames)
{
    balloon_target = frames;
    unsettled = true;
    retry.when = 0;
}

static void target_changed(struct watch *changed, const char *path)
{
    (void)changed, (void)path;
    uint64_t kib = store_get_number(0, "memory/target");
    if (kib)
        balloon_set(kib / 4);
}

static void retry_due(void *unused)
{
    (void)unused; /* the main loop looks again now that the timer is not armed */
}

void balloon_start(void)
{
    retry.due = retry_due;
    timer_add(&retry);
    watch = (struct watch){.path = "memory/target", .changed = target_changed};
    watch_add(&watch);
}
