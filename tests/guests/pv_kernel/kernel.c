/* A paravirtual kernel for tests: runs the one that its command line names and prints one line, "name: result". */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
#define NULL ((void *)0)
#define BASE 0xFFFFFFFF80000000ul
#define PAGE 4096ul
#define SELF 0x7FF0
#define USER 0x400000ul /* where users are mapped */

enum {
    SET_TRAP_TABLE, MMU_UPDATE, SET_GDT, STACK_SWITCH, SET_CALLBACKS, FPU_TASKSWITCH, SET_DEBUGREG = 8, GET_DEBUGREG,
    UPDATE_DESCRIPTOR, MEMORY_OP = 12, MULTICALL, UPDATE_VA_MAPPING, SET_TIMER = 15, XEN_VERSION = 17, CONSOLE_IO,
    GRANT_TABLE = 20, VM_ASSIST, SET_SEGMENT_BASE = 25, MMUEXT_OP, SCHED_OP = 29, CALLBACK_OP, EVENT_CHANNEL = 32,
    PHYSDEV_OP, HVM_OP,
};

struct start_info {
    char magic[32];
    u64 nr_pages, shared_info;
    u32 flags;
    u64 store_mfn;
    u32 store_evtchn;
    u64 console_mfn;
    u32 console_evtchn;
    u64 pt_base, nr_pt_frames, mfn_list, mod_start, mod_len;
    char cmd_line[1024];
    u64 first_p2m_pfn, nr_p2m_frames;
};
struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax, number, code, rip, cs, rflags, rsp, ss;
};
struct trap_info { u8 vector, flags; u16 cs; u64 address; };
struct mmu { u64 pointer, value; };
struct mmuext { u32 command; u64 first, second; };

extern char hypercall_page[], user_page[], user_compat[];
extern void trap_0(void), trap_1(void), trap_3(void), trap_6(void), trap_7(void), trap_11(void), trap_13(void),
    trap_14(void), trap_128(void), trap_129(void), event_entry(void), syscall_entry(void), failsafe_entry(void);
long hypercall(long number, ...);
void direct_iret(void), forced_cpuid(u32 leaf, u32 values[4]);
void leave_with(struct frame *frame) __attribute__((noreturn));
void trapped(struct frame *frame);
void kernel_main(void);

struct start_info *start_info;
u64 first_stack, first_flags;
u16 first_selectors[2];

static volatile u8 shared[4096] __attribute__((aligned(4096)));
static u64 tables[8][512] __attribute__((aligned(4096)));
static u64 spare[4][512] __attribute__((aligned(4096)));
static u8 stack[8192] __attribute__((aligned(4096)));
static u64 kernel_gs[2] = {0x6B65726E}, user_gs_page[512] __attribute__((aligned(4096))) = {0x75736572};

void *memset(void *to, int value, u64 size)
{
    for (u64 at = 0; at < size; at++)
        ((volatile char *)to)[at] = (char)value;
    return to;
}

/* Text */
static char line[2048];
static u32 length;
static void put(const char *text)
{
    while (*text && length < sizeof line - 2)
        line[length++] = *text++;
}
static void hex(u64 value)
{
    char digits[17];
    int at = 16;
    digits[16] = 0;
    do
        digits[--at] = "0123456789abcdef"[value & 15];
    while (value >>= 4);
    put(digits + at);
}
static void field(const char *name, u64 value)
{
    put(" ");
    put(name);
    put("=");
    hex(value);
}
static void down(void)
{
    u32 reason = 0;
    line[length++] = '\n';
    hypercall(CONSOLE_IO, 0, (long)length, line);
    hypercall(SCHED_OP, 2, &reason);
    for (;;)
        ;
}

/* What traps do: note, and step over the instruction by `skip` bytes or to `resume`. */
static volatile u64 skip, resume, seen_mask_after;
static int users_phase;
static struct frame last;
static volatile u32 count;
static void user_trap(struct frame *frame);
void trapped(struct frame *frame)
{
    last = *frame;
    count++;
    seen_mask_after = shared[1];
    if (frame->number != 1000 && users_phase)
        return user_trap(frame);
    if (frame->number == 1000) {
        shared[0] = 0;
        *(volatile u64 *)(shared + 8) = 0;
        *(volatile u64 *)(shared + 0x800) = 0;
    } else if (frame->number == 1) {
        frame->rflags &= ~0x100ul;
    } else if (resume)
        frame->rip = resume;
    else
        frame->rip += skip;
}

static struct trap_info traps[] = {
    {0, 0, 0xE033, (u64)trap_0}, {1, 0, 0xE033, (u64)trap_1}, {3, 3, 0xE033, (u64)trap_3},
    {6, 0, 0xE033, (u64)trap_6}, {7, 0, 0xE033, (u64)trap_7}, {11, 0, 0xE033, (u64)trap_11},
    {13, 0, 0xE033, (u64)trap_13}, {14, 4, 0xE033, (u64)trap_14}, {128, 3, 0xE033, (u64)trap_128},
    {129, 0, 0xE033, (u64)trap_129}, {0, 0, 0, 0},
};

static u64 frame_of(const void *address) { return ((u64)address - BASE) / PAGE; }
static long map(const volatile void *address, u64 entry) { return hypercall(UPDATE_VA_MAPPING, address, entry, 2L); }
static long extended(u32 command, u64 first, u64 second)
{
    struct mmuext operation = {command, first, second};
    return hypercall(MMUEXT_OP, &operation, 1L, NULL, SELF);
}
static long update(u64 pointer, u64 value)
{
    struct mmu operation = {pointer, value};
    return hypercall(MMU_UPDATE, &operation, 1L, NULL, SELF);
}

#define TRAP(name, code_text, length_of)                        \
    do {                                                        \
        u64 from;                                               \
        skip = (length_of), count = 0, last.number = 999;       \
        __asm__ volatile("leaq 1f(%%rip), %0\n1: " code_text : "=&r"(from)::"memory", "rax", "rcx", "rdx"); \
        put(" " name ":");                                      \
        hex(last.number);                                       \
        put("/");                                               \
        hex(last.code);                                         \
        put("@");                                               \
        hex(last.rip - from);                                   \
        put("x");                                               \
        hex(count);                                             \
    } while (0)

static void test_exceptions(void)
{
    TRAP("divide", "xorl %%edx, %%edx; xorl %%ecx, %%ecx; divl %%ecx", 2);
    TRAP("breakpoint", "int3", 0);
    TRAP("undefined", "ud2", 2);
    TRAP("system", "int $0x80", 0);
    TRAP("vector", "int $0x81", 2);
    TRAP("selector", "movl $0x4008, %%eax; movl %%eax, %%ds", 2);
    TRAP("read", "movq 0x5000, %%rax", 8);
    field("cr2", *(volatile u64 *)(shared + 16));
    field("masked", seen_mask_after);
    TRAP("write", "movq %%rax, 0x6008", 8);
    field("cr2", *(volatile u64 *)(shared + 16));
    hypercall(FPU_TASKSWITCH, 1L);
    TRAP("fpu", "fninit", 0);
    TRAP("again", "fninit", 0);
    TRAP("step", "pushfq; orl $0x100, (%%rsp); popfq; nop; nop", 0);
    field("flags", last.rflags & 0x300);
    field("cs", last.cs);
}

static void test_start(void)
{
    field("pages", start_info->nr_pages);
    field("selectors", first_selectors[0] & ~3u);
    field("flags", first_flags & 0x200);
    field("mask", shared[1]);
    put(" magic=");
    put(start_info->magic);
    put(" text=");
    put(start_info->cmd_line);
    u64 *p2m = (u64 *)start_info->mfn_list, *m2p = (u64 *)0xFFFF800000000000ul, wrong = 0;
    for (u64 at = 0; at < start_info->nr_pages; at++)
        wrong += m2p[p2m[at]] != at;
    field("wrong", wrong);
    u64 root = *(u64 *)(start_info->pt_base + 511 * 8);
    field("root", root & 0xFFF);
    field("initrd", start_info->mod_len);
    field("module", start_info->flags);
    resume = (u64)&&refused;
    count = 0;
    *(volatile u64 *)start_info->pt_base = *(volatile u64 *)start_info->pt_base; /* level 4 is read-only */
refused:
    __asm__ volatile("" ::: "memory");
    field("root-write", count);
    /* the console's ring: out is at 1024, its indexes at 3080 */
    u8 *ring = (u8 *)(BASE + start_info->console_mfn * PAGE);
    const char *text = "by the ring\n";
    u32 at = 0;
    for (; text[at]; at++)
        ring[1024 + at] = (u8)text[at];
    *(volatile u32 *)(ring + 3084) = at;
    u32 port = start_info->console_evtchn;
    field("sent", (u64)hypercall(EVENT_CHANNEL, 4L, &port));
}

static void test_version(void)
{
    u32 values[4], features[2] = {0, 0};
    u64 mapping[3], parameters = 0;
    forced_cpuid(0x40000000, values);
    field("xen", values[1]);
    forced_cpuid(1, values);
    field("hidden", values[3] & (1 << 3 | 1 << 9 | 1 << 13 | 1 << 16));
    hypercall(XEN_VERSION, 6L, features);
    field("features", features[1]);
    hypercall(XEN_VERSION, 5L, &parameters);
    field("hole", parameters);
    hypercall(MEMORY_OP, 12L, mapping);
    field("m2p", mapping[0]);
    field("largest", mapping[2]);
    u16 self = SELF;
    field("reservation", (u64)hypercall(MEMORY_OP, 3L, &self));
    field("assist", (u64)hypercall(VM_ASSIST, 0L, 2L));
    field("bad-assist", (u64)-hypercall(VM_ASSIST, 0L, 9L));
    field("hvm", (u64)-hypercall(HVM_OP, 1L, mapping));
    u32 iopl = 1, bad = 4;
    field("iopl", (u64)hypercall(PHYSDEV_OP, 6L, &iopl));
    field("bad-iopl", (u64)-hypercall(PHYSDEV_OP, 6L, &bad));
    field("apic", (u64)-hypercall(PHYSDEV_OP, 8L, &bad));
    struct { u64 operation; long result; u64 arguments[6]; } calls[2] = {{XEN_VERSION, 1, {0}}, {23, 1, {0}}};
    field("multicall", (u64)hypercall(MULTICALL, calls, 2L));
    field("first", (u64)calls[0].result);
    field("second", (u64)-calls[1].result);
}

static void test_events(void)
{
    struct { u32 vcpu, port; } ipi = {0, 0};
    field("bind", (u64)hypercall(EVENT_CHANNEL, 7L, &ipi));
    count = 0;
    shared[1] = 1;
    hypercall(EVENT_CHANNEL, 4L, &ipi.port);
    field("masked", count);
    field("pending", shared[0]);
    shared[1] = 0;
    hypercall(XEN_VERSION, 0L, NULL);
    field("taken", count);
    field("number", last.number);
    field("inside", seen_mask_after);
    field("after", shared[1]);
    field("saved", last.cs >> 32);
    field("if", last.rflags & 0x200);
    hypercall(EVENT_CHANNEL, 4L, &ipi.port); /* unmasked: taken when the hypercall ends */
    field("at-once", count);
    struct { u32 virq, vcpu, port; } timer = {0, 0, 0};
    hypercall(EVENT_CHANNEL, 1L, &timer);
    shared[1] = 1;
    count = 0;
    hypercall(SET_TIMER, 1L); /* a time that has passed */
    hypercall(SCHED_OP, 1L, NULL);
    field("woken", count);
    field("timer", last.number);
    count = 0;
    shared[1] = 1;
    skip = 2;
    __asm__ volatile("ud2");
    field("shadow", last.cs >> 32);
    field("shadow-if", last.rflags & 0x200);
    field("still", shared[1]);
}

static void test_tables(void)
{
    u64 frame = frame_of(spare[0]), entry = frame * PAGE | 0x63;
    field("map", (u64)-map(spare[0], frame_of(spare[1]) * PAGE | 0x63));
    spare[1][7] = 0x1234;
    field("alias", spare[0][7]);
    field("restore", (u64)-map(spare[0], entry));
    field("foreign", (u64)-map(spare[0], (start_info->nr_pages + 1) * PAGE | 0x63));
    field("far", (u64)-map(spare[0], 0xFFFFFFFFF000ul | 0x63));
    field("no-table", (u64)-map((void *)0x7000000000ul, entry));
    /* a level-1 table: read-only, pinned, written to as Xen allows, and unpinned */
    field("read-only", (u64)-map(spare[2], frame_of(spare[2]) * PAGE | 0x61));
    field("pin", (u64)-extended(0, frame_of(spare[2]), 0));
    field("again", (u64)-extended(0, frame_of(spare[2]), 0));
    field("level", (u64)-extended(1, frame_of(spare[2]), 0));
    count = 0;
    skip = 0;
    spare[2][5] = entry;
    field("written", spare[2][5] == entry && !count);
    field("entry", (u64)-update(frame_of(spare[2]) * PAGE + 6 * 8, entry));
    field("entry-foreign", (u64)-update(frame_of(spare[2]) * PAGE + 6 * 8, (start_info->nr_pages + 1) * PAGE | 3));
    field("unaligned", (u64)-update(frame_of(spare[2]) * PAGE + 6 * 8 + 4, entry));
    field("unpin", (u64)-extended(4, frame_of(spare[2]), 0));
    field("not-pinned", (u64)-extended(4, frame_of(spare[2]), 0));
    field("outside", (u64)-extended(0, start_info->nr_pages, 0));
    field("xen-slot", (u64)-update(start_info->pt_base - BASE + 260 * 8, entry));
    field("mode", (u64)-update((start_info->pt_base - BASE + 10 * 8) | 3, entry));
    field("clear", (u64)-extended(16, frame_of(spare[1]), 0));
    field("cleared", spare[1][7]);
    field("clear-table", (u64)-extended(16, (start_info->pt_base - BASE) / PAGE, 0));
    field("other", (u64)-hypercall(MMUEXT_OP, NULL, 0L, NULL, 77L));
    /* a read-only page that is no table stays one */
    map(spare[3], frame_of(spare[3]) * PAGE | 0x61);
    resume = (u64)&&refused;
    count = 0;
    spare[3][1] = 1;
refused:
    __asm__ volatile("" ::: "memory");
    field("protected", count);
    field("code", last.code);
    resume = (u64)&&refused2;
    count = 0;
    *(volatile u64 *)0xFFFF800000000000ul = 5;
refused2:
    __asm__ volatile("" ::: "memory");
    field("m2p", count);
    u64 most = 1;
    field("balloon-table", (u64)-hypercall(MEMORY_OP, 1L, &(struct { u64 list, extents; u32 order, flags; u16 domid; }){
        (u64)&(u64){(start_info->pt_base - BASE) / PAGE}, most, 0, 0, SELF}));
}

/* Users: page tables of their own with one page of code, and what they do to come back. */
static void enter_user(u64 rip, u64 cs, u64 ss)
{
    struct frame frame = {.rip = rip, .cs = cs, .ss = ss, .rflags = 0x202, .rsp = USER + 0x2F00, .rdi = (u64)&last};
    users_phase = 1;
    leave_with(&frame);
}
static void build_users(void)
{
    u64 *root = tables[0], *first = tables[3];
    root[USER >> 39] = frame_of(tables[1]) * PAGE | 7;
    tables[1][USER >> 30 & 511] = frame_of(tables[2]) * PAGE | 7;
    tables[2][USER >> 21 & 511] = frame_of(first) * PAGE | 7;
    first[0] = frame_of(user_page) * PAGE | 5;
    first[1] = frame_of(user_gs_page) * PAGE | 7;
    first[2] = frame_of(spare[0]) * PAGE | 7;
    first[3] = frame_of(user_compat) * PAGE | 5;
    for (int at = 0; at < 4; at++)
        map(tables[at], frame_of(tables[at]) * PAGE | 0x61);
    field("pin", (u64)-extended(3, frame_of(root), 0));
    field("base", (u64)-extended(15, frame_of(root), 0));
    hypercall(STACK_SWITCH, 0xE02BL, stack + sizeof stack);
    hypercall(SET_SEGMENT_BASE, 1L, USER + PAGE);
    hypercall(SET_SEGMENT_BASE, 2L, kernel_gs);
}
static u64 gs_now(void)
{
    u64 value;
    __asm__ volatile("movq %%gs:0, %0" : "=r"(value));
    return value;
}
static void user_trap(struct frame *frame)
{
    put(" ");
    hex(frame->number);
    put("/");
    hex(frame->code);
    put("@");
    hex((frame->cs & 3) == 3 ? frame->rip - USER : 0);
    if (frame->number == 1001 && frame->rax == 0x1234) {
        field("rbx", frame->rbx);
        field("cs", frame->cs);
        field("ss", frame->ss);
        field("gs", gs_now());
        field("user-gs", frame->r12);
        field("on-stack", (u64)frame > (u64)stack && (u64)frame < (u64)stack + sizeof stack);
        field("rcx", frame->rcx - USER);
        frame->rax = 0xAB;
    } else if (frame->number == 1001) {
        field("end", frame->rax);
        field("returned", frame->r13);
        down();
    } else if (frame->number == 13 && frame->code == 0x81 * 8 + 2)
        frame->rip += 2;
    else if (frame->number == 13)
        frame->rip += 1;
    else if (frame->number == 14) {
        field("own", *(volatile u64 *)(shared + 16) == (u64)&last);
        frame->rip += 3;
    } else if (frame->number == 128 && (frame->cs & 0xFFFF) == 0x23) {
        field("rax", frame->rax);
        field("cs", frame->cs);
        down();
    } else if (frame->number == 1002) {
        field("cs", frame->cs);
        field("rip", frame->rip);
        down();
    }
}
static void test_users(void)
{
    build_users();
    enter_user(USER, 0xE033, 0xE02B);
}
static void test_failsafe(void)
{
    build_users();
    enter_user(USER, 0x4003, 0xE02B);
}
static void test_compat(void)
{
    static u64 gdt[512] __attribute__((aligned(4096)));
    build_users();
    gdt[4] = 0x00CFFB000000FFFF;
    gdt[5] = 0x00CFF3000000FFFF;
    map(gdt, frame_of(gdt) * PAGE | 0x61);
    u64 list = frame_of(gdt);
    field("gdt", (u64)-hypercall(SET_GDT, &list, 512L));
    field("too-many", (u64)-hypercall(SET_GDT, &list, 7169L));
    field("gate", (u64)-hypercall(UPDATE_DESCRIPTOR, frame_of(gdt) * PAGE + 64, 0x00008E0000000000ul));
    field("descriptor", (u64)-hypercall(UPDATE_DESCRIPTOR, frame_of(gdt) * PAGE + 48, 0x00AFFB000000FFFFul));
    field("there", gdt[6] == 0x00AFFB000000FFFF);
    enter_user(USER + 0x3000, 0x23, 0x2B);
}
static void test_nobody(void)
{
    hypercall(SET_TRAP_TABLE, NULL);
    __asm__ volatile("ud2");
}
static void test_no_tables(void) { enter_user(USER, 0xE033, 0xE02B); }
static void test_no_stack(void)
{
    build_users();
    hypercall(STACK_SWITCH, 0xE02BL, 0x1000L);
    enter_user(USER, 0xE033, 0xE02B);
}

static void test_registers(void)
{
    u64 flags;
    direct_iret();
    put(" iretq=ok");
    __asm__ volatile("pushfq; popq %0" : "=r"(flags));
    field("if", flags & 0x200);
    field("dr0", (u64)-hypercall(SET_DEBUGREG, 0L, 0x1000L));
    field("got", (u64)hypercall(GET_DEBUGREG, 0L));
    field("xen", (u64)-hypercall(SET_DEBUGREG, 1L, 0xFFFF800000000000ul));
    field("detect", (u64)-hypercall(SET_DEBUGREG, 7L, 1L << 13));
    field("ninth", (u64)-hypercall(SET_DEBUGREG, 9L, 0L));
    struct { u16 type, flags; u64 address; } callback = {9, 0, 0x1000};
    field("kind", (u64)-hypercall(CALLBACK_OP, 0L, &callback));
    callback.type = 0;
    field("remove", (u64)-hypercall(CALLBACK_OP, 1L, &callback));
    callback.address = 1ul << 50;
    field("address", (u64)-hypercall(CALLBACK_OP, 0L, &callback));
    field("base", (u64)-hypercall(SET_SEGMENT_BASE, 0L, 1ul << 50));
    field("pointer", (u64)-hypercall(SET_TRAP_TABLE, 0x5000L));
    hypercall(SET_SEGMENT_BASE, 2L, kernel_gs);
    field("gs", gs_now());
    skip = 0;
    __asm__ volatile("movl $1, %%eax; halt_here: sti" ::: "rax");
}

static void test_grants(void)
{
    struct { u16 dom; u32 frames; short status; u64 *list; } setup = {SELF, 2, 77, NULL};
    u64 list[2] = {0, 0};
    setup.list = list;
    field("setup", (u64)-hypercall(GRANT_TABLE, 2L, &setup, 1L));
    field("status", (u64)setup.status);
    field("next", list[1] - list[0]);
    field("xen", list[0] > start_info->nr_pages);
    field("map", (u64)-map(spare[0], list[0] * PAGE | 0x63));
    spare[0][0] = 0x77;
    setup.frames = 65;
    hypercall(GRANT_TABLE, 2L, &setup, 1L);
    field("many", (u64)-setup.status);
    setup.frames = 1;
    setup.dom = 5;
    hypercall(GRANT_TABLE, 2L, &setup, 1L);
    field("other", (u64)-setup.status);
    field("kept", spare[0][0]);
}

/* Grants of domain 1: 8 is a frame to write to, 9 one to read, 10 nothing. */
enum { DEVICE_MAP = 1, HOST_MAP = 2, READ_ONLY = 4, APPLICATION_MAP = 8, CONTAINS_PTE = 16 };
static struct { u64 address; u32 flags, ref; u16 dom; short status; u32 handle; u64 bus; } asked = {.dom = 1};
static u64 map_grant(const volatile void *at, u32 flags, u32 ref)
{
    asked.address = (u64)at, asked.flags = flags, asked.ref = ref, asked.status = 77;
    long result = hypercall(GRANT_TABLE, 0L, &asked, 1L);
    return result ? (u64)result : (u64)-asked.status;
}
static u64 unmap_by(long command, const volatile void *at, u64 second, u32 handle)
{
    struct { u64 address, second; u32 handle; short status; } given = {(u64)at, second, handle, 77};
    long result = hypercall(GRANT_TABLE, command, &given, 1L);
    return result ? (u64)result : (u64)-given.status;
}
static u64 unmap_grant(const volatile void *at, u64 bus, u32 handle) { return unmap_by(1, at, bus, handle); }
static volatile u64 *entry_of(const volatile void *address)
{
    u64 table = start_info->pt_base;
    for (int shift = 39; shift > 12; shift -= 9)
        table = BASE + (((u64 *)table)[(u64)address >> shift & 511] & 0xFFFFFFFFF000);
    return (u64 *)table + ((u64)address >> 12 & 511);
}
static u64 own(const volatile void *address) { return frame_of((void *)address) * PAGE | 0x63; }
static u64 faults(volatile u64 *at, int write)
{
    resume = (u64)&&faulted;
    count = 0, last.code = 0;
    if (write)
        *at = 0x666;
    else
        (void)*at;
faulted:
    __asm__ volatile("" ::: "memory");
    return count ? last.code | 0x100 : 0;
}

static void test_maps(void)
{
    volatile u64 *page = spare[0], *other = spare[1], *third = spare[2], *fourth = spare[3];
    page[0] = page[1] = 0x99;
    field("map", map_grant(page, HOST_MAP, 8));
    u32 handle = asked.handle;
    u64 bus = asked.bus;
    field("seen", page[0]);
    page[1] = 0x4321;
    field("shown", (*entry_of(page) & 0xFFFFFFFFF000) == bus && bus / PAGE > start_info->nr_pages);
    field("entry", *entry_of(page) & 0xFFF);
    field("high", *entry_of(page) >> 60);

    field("read-only", map_grant(other, HOST_MAP | READ_ONLY | APPLICATION_MAP | 5 << 16, 9));
    u32 reader = asked.handle;
    field("read", other[0]);
    field("read-entry", *entry_of(other) & 0xFFF);
    field("write", faults(other, 1));
    *entry_of(other) |= 2; /* as a guest may here, and not with Xen */
    extended(6, 0, 0);
    other[0] = 0xBAD;
    field("copy", other[0]);
    field("spoilt", unmap_grant(other, 0, reader));
    *entry_of(other) &= ~2ul;
    field("unmap", unmap_grant(other, 0, reader));
    field("gone", faults(other, 0));

    field("no-grant", (u64)-map(other, (bus + PAGE) | 0x63));
    field("no-grant-update", (u64)-update((u64)entry_of(other) - BASE, (bus + PAGE) | 0x63));
    field("again", (u64)-map(other, bus | 0x63));
    field("other-flags", (u64)-map(page, *entry_of(page) & ~0x40ul));
    *entry_of(other) = (bus + PAGE) | 0x63;
    extended(6, 0, 0);
    field("empty", other[0]);

    const void *pte = (void *)((u64)entry_of(third) - BASE);
    field("by-entry", map_grant(pte, HOST_MAP | CONTAINS_PTE, 8));
    u32 second = asked.handle;
    field("same", third[1]);
    field("by-address", unmap_grant(third, 0, second));
    field("unmap-entry", unmap_grant(pte, 0, second));
    field("entry-gone", faults(third, 0));
    field("unaligned", map_grant((char *)pte + 4, HOST_MAP | CONTAINS_PTE, 8));
    field("no-table", map_grant((void *)(frame_of(spare[3]) * PAGE), HOST_MAP | CONTAINS_PTE, 8));
    field("far-table", map_grant((void *)(1ul << 45), HOST_MAP | CONTAINS_PTE, 8));
    field("upper-table", map_grant((void *)(start_info->pt_base - BASE), HOST_MAP | CONTAINS_PTE, 8));

    field("no-flags", map_grant(third, READ_ONLY, 8));
    field("bad-ref", map_grant(third, HOST_MAP, 5000));
    field("no-ref", map_grant(third, HOST_MAP, 10));
    field("not-writable", map_grant(third, HOST_MAP, 9));
    field("no-address", map_grant((void *)0x7000000000, HOST_MAP, 8));
    field("not-canonical", map_grant((void *)(1ul << 50), HOST_MAP, 8));
    field("xens-address", map_grant((void *)0xFFFF800000000000, HOST_MAP, 8));
    asked.dom = 99;
    field("no-domain", map_grant(third, HOST_MAP, 8));
    asked.dom = 1;
    field("bad-handle", unmap_grant(page, 0, 77));
    field("other-address", unmap_grant(fourth, 0, handle));
    field("nowhere", unmap_grant(NULL, 0, handle));
    field("still", page[1]);

    field("device", map_grant(third, HOST_MAP | DEVICE_MAP, 8));
    u32 device = asked.handle;
    u64 device_bus = asked.bus;
    field("other-bus", unmap_grant(third, device_bus + PAGE, device));
    field("host", unmap_grant(third, 0, device));
    field("host-gone", faults(third, 0));
    field("bus", unmap_grant(third, device_bus, device));
    field("both-gone", unmap_grant(third, device_bus, device));

    fourth[0] = 0xF0;
    field("replace", unmap_by(7, page, (u64)fourth, handle));
    field("replaced", page[0]);
    field("moved", faults(fourth, 0));
    map(page, own(page));
    map(fourth, own(fourth));
    map_grant(pte, HOST_MAP | CONTAINS_PTE, 8);
    field("replace-entry", unmap_by(7, pte, (u64)fourth, asked.handle));
    field("unmap-again", unmap_grant(pte, 0, asked.handle));

    /* a table of its own with a mapping in it, and dropped with that */
    memset(spare[3], 0, PAGE);
    map(fourth, own(fourth) & ~2ul);
    extended(0, frame_of(spare[3]), 0);
    field("in-table", map_grant((void *)(frame_of(spare[3]) * PAGE + 8), HOST_MAP | CONTAINS_PTE, 8));
    field("unpin", (u64)-extended(4, frame_of(spare[3]), 0));
    field("no-table-now", unmap_grant((void *)(frame_of(spare[3]) * PAGE + 8), 0, asked.handle));
    map(page, own(page));
    field("left", map_grant(page, HOST_MAP | READ_ONLY, 9));
    field("alive", page[0]);
}

static const struct { const char *name; void (*run)(void); } tests[] = {
    {"start", test_start}, {"exceptions", test_exceptions}, {"version", test_version}, {"events", test_events},
    {"tables", test_tables}, {"users", test_users}, {"failsafe", test_failsafe}, {"compat", test_compat},
    {"nobody", test_nobody}, {"no-tables", test_no_tables}, {"no-stack", test_no_stack},
    {"registers", test_registers}, {"grants", test_grants}, {"maps", test_maps},
};

void kernel_main(void)
{
    hypercall(SET_TRAP_TABLE, traps);
    hypercall(SET_CALLBACKS, event_entry, failsafe_entry, syscall_entry);
    map(shared, start_info->shared_info | 0x63);
    for (u32 at = 0; at < sizeof tests / sizeof *tests; at++) {
        const char *one = tests[at].name, *other = start_info->cmd_line;
        while (*one && *one == *other)
            one++, other++;
        if (!*one && !*other) {
            put(tests[at].name);
            put(":");
            tests[at].run();
        }
    }
    down();
}
