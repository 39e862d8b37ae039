/* What a paravirtual start (public/xen.h) needs that PVH does not: page tables, traps and frames by way of Xen.
 *
 * Xen maps us one to one from address 0 (entry.S: VIRT_BASE), up to the next 4 MiB behind its tables and our first
 * stack, with 512 KiB to spare. We rely on machine frames that have our own numbers, as Kronos gives them: a Xen
 * with others is told so and left. */
#include "kernel.h"

enum { PRESENT = 1, WRITABLE = 2, TABLE = 0x67, UPDATES = 128, MAPPED_SPARE = 512 * 1024, MAPPED_UNIT = 4 << 20 };
#define NO_EXECUTE (1ul << 63)
#define ENTRY_FRAME 0x000FFFFFFFFFF000ul

void paravirtual_main(const struct start_info *info) __attribute__((noreturn));
void paravirtual_upcall_entry(void);
void paravirtual_failsafe_entry(void);
extern void (*const paravirtual_trap_entries[TRAPS])(void);
extern char text_end[], constants_end[], stack_guard[], pvh_entry[];

static const struct start_info *start;
bool paravirtual;

/* Page tables: entries are written by Xen, several at a time. */

static struct {
    uint64_t pointer, value;
} updates[UPDATES];
static uint32_t pending_updates;

static void fail(const char *why)
{
    hypercall(HYPERCALL_CONSOLE, 0, strlen(why), why);
    shut_down(SHUTDOWN_CRASH);
}

static void flush_updates(void)
{
    if (pending_updates && hypercall(HYPERCALL_MMU_UPDATE, updates, pending_updates, 0, DOMID_SELF))
        fail("panic: Xen refuses page table entries\r\n");
    pending_updates = 0;
}

static void set_entry(uint64_t *entry, uint64_t value)
{
    updates[pending_updates].pointer = (uint64_t)entry;
    updates[pending_updates++].value = value;
    if (pending_updates == UPDATES)
        flush_updates();
}

/* Returns the entry of an address in the table of a level (1 to 4); NULL when there is no such table. */
static uint64_t *entry_of(uint64_t address, int level)
{
    uint64_t *table = (uint64_t *)start->pt_base;
    for (int at = 4; at > level; at--) {
        uint64_t entry = table[address >> (3 + 9 * at) & 511];
        if (!(entry & PRESENT))
            return NULL;
        table = (uint64_t *)(entry & ENTRY_FRAME);
    }
    return &table[address >> (3 + 9 * level) & 511];
}

static void flush_translations(void)
{
    struct {
        uint32_t command, pad;
        uint64_t first, second;
    } flush = {MMUEXT_TLB_FLUSH_LOCAL, 0, 0, 0};
    flush_updates();
    hypercall(HYPERCALL_MMUEXT, &flush, 1, 0, DOMID_SELF);
}

/* Maps one of our pages to a frame of Xen's. */
bool paravirtual_map(void *page, uint64_t machine)
{
    return !hypercall(HYPERCALL_UPDATE_VA_MAPPING, page, machine * PAGE | PRESENT | WRITABLE | NO_EXECUTE, 2);
}

/* What `protect` of memory.c does; Xen's own tables stay read-only. */
void paravirtual_protect(void)
{
    for (uint64_t address = 0; address < paravirtual_mapped_end(); address += PAGE) {
        uint64_t *entry = entry_of(address, 1), value = *entry | NO_EXECUTE;
        if (address >= (uint64_t)pvh_entry && address < (uint64_t)text_end)
            value = address | PRESENT;
        else if (address >= (uint64_t)text_end && address < (uint64_t)constants_end)
            value &= ~(uint64_t)WRITABLE;
        else if (!address || address == (uint64_t)stack_guard)
            value = 0;
        set_entry(entry, value);
    }
    flush_translations();
}

/* Gives an upper table a new one below: a page that we first make read-only, as Xen demands of tables. */
static void add_table(uint64_t address, int level)
{
    uint64_t frame = frame_take(), *table = frame_address(frame);
    memset(table, 0, PAGE);
    if (level == 1)
        for (uint64_t at = 0; at < 512; at++)
            table[at] = ((address & ~0x1FFFFFul) + at * PAGE) | PRESENT | WRITABLE | NO_EXECUTE;
    uint64_t *own = entry_of((uint64_t)table, 1);
    set_entry(own, *own & ~(uint64_t)WRITABLE);
    flush_translations();
    set_entry(entry_of(address, level + 1), frame * PAGE | TABLE);
    flush_updates();
}

/* Maps RAM behind what Xen has mapped. */
void paravirtual_map_rest(uint64_t top)
{
    for (uint64_t address = paravirtual_mapped_end(); address < top; address += 512 * PAGE)
        for (int level = 3; level; level--)
            if (!(*entry_of(address, level + 1) & PRESENT))
                add_table(address, level);
}

/* Start */

uint64_t paravirtual_free_start(void) { return start->pt_base + (start->nr_pt_frames + 1) * PAGE; }

uint64_t paravirtual_mapped_end(void)
{
    return (paravirtual_free_start() + MAPPED_SPARE + MAPPED_UNIT - 1) / MAPPED_UNIT * MAPPED_UNIT;
}

uint64_t paravirtual_start_frame(void) { return (uint64_t)start / PAGE; }

static void traps(void)
{
    static struct {
        uint8_t vector, flags;
        uint16_t selector;
        uint64_t address;
    } table[TRAPS + 1];
    for (uint32_t number = 0; number < TRAPS; number++) {
        table[number].vector = (uint8_t)number;
        table[number].flags = 4; /* events are masked */
        table[number].selector = FLAT_KERNEL_CODE;
        table[number].address = (uint64_t)paravirtual_trap_entries[number];
    }
    hypercall(HYPERCALL_SET_TRAP_TABLE, table);
    hypercall(HYPERCALL_SET_CALLBACKS, paravirtual_upcall_entry, paravirtual_failsafe_entry, 0);
}

void paravirtual_main(const struct start_info *info)
{
    paravirtual = true;
    start = info;
    traps();
    const uint64_t *machine = (const uint64_t *)info->mfn_list;
    for (uint64_t frame = 0; frame < info->nr_pages; frame++)
        if (machine[frame] != frame)
            fail("panic: this Xen gives frames other numbers; boot the guest by PVH\r\n");
    paravirtual_memory_start(info);
    kernel_run();
}

/* Where Xen's pages and ports are; the toolstack writes them anew before a resume. */

bool paravirtual_param(uint32_t index, uint64_t *value)
{
    const volatile struct start_info *info = start;
    *value = index == HVM_PARAM_STORE_PFN     ? info->store_frame
             : index == HVM_PARAM_STORE_EVTCHN ? info->store_port
             : index == HVM_PARAM_CONSOLE_PFN  ? info->console_frame
                                               : info->console_port;
    return true;
}

void paravirtual_map_shared(void)
{
    if (!paravirtual_map(&shared_info_page, ((const volatile struct start_info *)start)->shared_info / PAGE))
        fail("panic: no shared page\r\n");
}

/* Lets `page` be the grant table's frame of a number. */
bool paravirtual_map_grants(void *page, uint64_t index)
{
    uint64_t frames[8];
    struct {
        uint16_t domid;
        uint32_t count;
        int16_t status;
        uint64_t *frames;
    } request = {DOMID_SELF, (uint32_t)index + 1, -1, frames};
    if (index >= COUNT_OF(frames) || hypercall(HYPERCALL_GRANT_TABLE, GNTTABOP_SETUP_TABLE, &request, 1))
        return false;
    return !request.status && paravirtual_map(page, frames[index]);
}
