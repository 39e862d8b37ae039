/* The grant table, version 1 (public/grant_table.h): frames that backends in domain 0 may use. */
#include "kernel.h"

enum { FRAMES = 4, ENTRIES = FRAMES * GRANTS_PER_FRAME, FIRST = 8, DEFERRED = 64 };

static struct grant_entry table[ENTRIES] __attribute__((aligned(PAGE), section(".bss.pages")));
static uint32_t placed, waiting, next_entry = FIRST;
static struct {
    uint32_t reference;
    uint64_t frame;
} deferred[DEFERRED];

static bool place(void)
{
    if (placed == FRAMES || !add_to_physmap(XENMAPSPACE_GRANT_TABLE, placed, (uint64_t)table / PAGE + placed))
        return false;
    placed++;
    return true;
}

/* After a restore the table is Xen's again, and empty: all references are void. */
void grants_resume(void)
{
    uint32_t frames = placed;
    memset(table, 0, sizeof table);
    memset(deferred, 0, sizeof deferred);
    waiting = 0;
    for (placed = 0; placed < frames && place();)
        continue;
}

static void retry_deferred(void)
{
    for (uint32_t at = 0; waiting && at < DEFERRED; at++)
        if (deferred[at].reference && grant_end(deferred[at].reference)) {
            frame_give(deferred[at].frame);
            deferred[at].reference = 0;
            waiting--;
        }
}

/* Lets domain 0 use a frame; the guest crashes when the table is full. */
uint32_t grant(uint64_t frame, bool read_only)
{
    retry_deferred();
    for (;;) {
        for (uint32_t tries = 0; tries < placed * GRANTS_PER_FRAME; tries++, next_entry++) {
            if (next_entry >= placed * GRANTS_PER_FRAME)
                next_entry = FIRST;
            if (table[next_entry].flags)
                continue;
            table[next_entry].domid = 0;
            table[next_entry].frame = (uint32_t)frame;
            __atomic_store_n(&table[next_entry].flags, GTF_PERMIT_ACCESS | (read_only ? GTF_READONLY : 0),
                             __ATOMIC_SEQ_CST);
            return next_entry++;
        }
        if (!place()) {
            print("panic: out of grants\r\n");
            shut_down(SHUTDOWN_CRASH);
        }
    }
}

/* Takes the permission back; false while the other side still uses it. */
bool grant_end(uint32_t reference)
{
    uint16_t flags = __atomic_load_n(&table[reference].flags, __ATOMIC_SEQ_CST);
    do
        if (flags & (GTF_READING | GTF_WRITING))
            return false;
    while (!__atomic_compare_exchange_n(&table[reference].flags, &flags, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return true;
}

/* The same, and gives the frame back: later, if the other side still uses it. */
void grant_end_and_give(uint32_t reference, uint64_t frame)
{
    if (grant_end(reference)) {
        frame_give(frame);
        return;
    }
    for (uint32_t at = 0; at < DEFERRED; at++)
        if (!deferred[at].reference) {
            deferred[at].reference = reference;
            deferred[at].frame = frame;
            waiting++;
            return;
        }
}
