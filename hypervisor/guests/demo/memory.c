/* Physical memory: page tables, which frames are RAM, and who has them.
 *
 * One bit a frame says that it is in use or no RAM; the bits lie behind the kernel and are zero for what is free,
 * so that a large guest touches little. Frames are taken from below, so that used memory stays together; what the
 * balloon gives back and what `touch` dirties comes from above. */
#include "kernel.h"

enum { MAP_ENTRIES = 16, RESERVED_FOR_US = 48 };
enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80 };
#define NO_EXECUTE (1ul << 63)
#define FRAMES_PER_GIB 262144ul

extern char text_end[], constants_end[], kernel_end[], stack_guard[], pvh_entry[];
extern uint64_t page_pointers[512], page_table_low[512];

static struct hvm_memory_map_entry map[MAP_ENTRIES];
static uint32_t map_entries;
static char command_line_copy[256];
const char *command_line = command_line_copy;

uint64_t memory_frames, memory_free;
static uint64_t top_frame, next_frame;
static uint64_t *used;

/* Start info lies right behind the kernel, where we want the bits: keep what we need of it. */
static void copy_start_info(const struct hvm_start_info *info)
{
    const struct hvm_memory_map_entry *entries = (const void *)info->memory_map;
    for (uint32_t at = 0; at < info->memory_map_entries && map_entries < MAP_ENTRIES; at++)
        if (entries[at].kind == HVM_MEMMAP_RAM)
            map[map_entries++] = entries[at];
    if (info->command_line)
        format(command_line_copy, sizeof command_line_copy, "%s", (const char *)info->command_line);
}

/* Makes code read-only, everything else not executable, and address 0 and the page below the stack invalid. */
static void protect(void)
{
    if (paravirtual)
        return paravirtual_protect();
    for (uint64_t number = 0; number < 512; number++) {
        uint64_t address = number * PAGE, entry = address | PRESENT | WRITABLE | NO_EXECUTE;
        if (address >= (uint64_t)pvh_entry && address < (uint64_t)text_end)
            entry = address | PRESENT;
        else if (address >= (uint64_t)text_end && address < (uint64_t)constants_end)
            entry = address | PRESENT | NO_EXECUTE;
        else if (!address || address == (uint64_t)stack_guard)
            entry = 0;
        page_table_low[number] = entry;
    }
    uint64_t root;
    __asm__ volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"(root)::"memory");
}

/* Maps RAM beyond the first GiB, which the entry code has mapped; a page of entries serves one GiB. */
static void map_rest(void)
{
    if (paravirtual)
        return paravirtual_map_rest(top_frame * PAGE);
    for (uint64_t gib = 1; gib * FRAMES_PER_GIB < top_frame && gib < 512; gib++) {
        uint64_t *directory = frame_address(frame_take());
        for (uint64_t number = 0; number < 512; number++)
            directory[number] = (gib << 30 | number << 21) | PRESENT | WRITABLE | LARGE | NO_EXECUTE;
        page_pointers[gib] = (uint64_t)directory | PRESENT | WRITABLE;
    }
}

static void set_used(uint64_t first, uint64_t end)
{
    for (uint64_t frame = first; frame < end;) {
        if (!(frame % 64) && end - frame >= 64) {
            used[frame / 64] = UINT64_MAX;
            frame += 64;
        } else {
            used[frame / 64] |= 1ul << frame % 64;
            frame++;
        }
    }
}

/* Takes the map, in order, for what it says; nothing before `free_start`, from the kernel on, is free. */
static void prepare(uint64_t free_start, uint64_t most)
{
    protect();
    for (uint32_t at = 0; at < map_entries; at++) {
        uint64_t end = (map[at].start + map[at].size) / PAGE;
        top_frame = end > top_frame ? end : top_frame;
    }
    if (top_frame > most)
        top_frame = most;
    used = (uint64_t *)free_start;
    uint64_t bytes = (top_frame / 64 + 1) * 8, at = 0;
    memset(used, 0, bytes);
    for (uint32_t entry = 0; entry < map_entries; entry++) { /* they come in order */
        uint64_t start = (map[entry].start + PAGE - 1) / PAGE, end = (map[entry].start + map[entry].size) / PAGE;
        end = end < top_frame ? end : top_frame;
        if (start >= end)
            continue;
        set_used(at, start);
        memory_frames += end - start;
        at = end;
    }
    set_used(at, (top_frame / 64 + 1) * 64);
    uint64_t first = (uint64_t)pvh_entry / PAGE, last = ((uint64_t)used + bytes + PAGE - 1) / PAGE;
    set_used(first, last);
    memory_free = memory_frames - (last - first);
    next_frame = last;
    map_rest();
}

void memory_start(const struct hvm_start_info *info)
{
    copy_start_info(info);
    prepare((uint64_t)kernel_end, 512 * FRAMES_PER_GIB);
}

/* The bits must lie in what Xen has mapped: 256 KiB of them are for 8 GiB. */
void paravirtual_memory_start(const struct start_info *info)
{
    map[map_entries++] = (struct hvm_memory_map_entry){PAGE, (info->nr_pages - 1) * PAGE, HVM_MEMMAP_RAM, 0};
    format(command_line_copy, sizeof command_line_copy, "%s", info->command_line);
    prepare(paravirtual_free_start(), 8 * FRAMES_PER_GIB);
}

/* Takes a frame, which holds anything; the guest cannot go on without, so it crashes when there is none. */
uint64_t frame_take(void)
{
    for (uint64_t tries = 0; tries <= top_frame / 64 + 1; tries++) {
        uint64_t word = next_frame / 64;
        if (next_frame < top_frame && used[word] != UINT64_MAX) {
            uint64_t frame = word * 64 + (uint64_t)__builtin_ctzl(~used[word]);
            used[word] |= 1ul << frame % 64;
            memory_free--;
            next_frame = frame;
            return frame;
        }
        next_frame = next_frame < top_frame ? (word + 1) * 64 : 0;
    }
    print("panic: out of memory\r\n");
    console_flush();
    shut_down(SHUTDOWN_CRASH);
}

void frame_give(uint64_t frame)
{
    used[frame / 64] &= ~(1ul << frame % 64);
    memory_free++;
    if (frame < next_frame)
        next_frame = frame;
}

/* Takes 2^order (order 0 or 9) neighbouring frames below `*top` and returns the first; 0 when there are none.
 * Leaves some for the guest itself. `*top` goes down: start again with UINT64_MAX. */
uint64_t frames_take_high(uint64_t *top, uint32_t order)
{
    uint64_t count = 1ul << order;
    if (*top > top_frame)
        *top = top_frame;
    if (memory_free < count + RESERVED_FOR_US)
        return 0;
    for (uint64_t frame = *top & ~(count - 1); frame >= count;) {
        frame -= count;
        bool taken = false;
        if (order)
            for (uint64_t word = frame / 64; word < (frame + count) / 64; word++)
                taken |= used[word] != 0;
        else
            taken = used[frame / 64] >> frame % 64 & 1;
        if (taken)
            continue;
        set_used(frame, frame + count);
        memory_free -= count;
        *top = frame;
        return frame;
    }
    *top = 0;
    return 0;
}
