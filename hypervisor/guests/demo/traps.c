/* Descriptor tables, and what happens on an exception: the registers are told, and the domain crashes. */
#include "kernel.h"

struct trap_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t number, error_code, rip, cs, rflags, rsp, ss;
};

struct gate {
    uint16_t offset_low, selector;
    uint8_t stack, kind;
    uint16_t offset_middle;
    uint32_t offset_high, reserved;
};

struct __attribute__((packed)) task_segment {
    uint32_t reserved0;
    uint64_t stack[3], reserved1, interrupt_stack[7], reserved2;
    uint16_t reserved3, io_map;
};

struct __attribute__((packed)) table_pointer {
    uint16_t limit;
    void *base;
};

enum { SELECTOR_CODE = 8, SELECTOR_TASK = 24, GATE_INTERRUPT = 0x8E };

extern void (*const trap_entries[TRAPS])(void);
void upcall_entry(void);
void trap_report(struct trap_frame *frame) __attribute__((noreturn));

static struct gate gates[EVENT_VECTOR + 1];
static struct task_segment task;
/* Traps run on a stack of their own: the usual one may be what has run over. */
static uint8_t trap_stack[4096] __attribute__((aligned(16)));
static uint64_t descriptors[5];

static void set_gate(uint32_t vector, void (*entry)(void), uint8_t stack)
{
    uint64_t address = (uint64_t)entry;
    gates[vector] = (struct gate){(uint16_t)address, SELECTOR_CODE, stack, GATE_INTERRUPT, (uint16_t)(address >> 16),
                                  (uint32_t)(address >> 32), 0};
}

void traps_start(void)
{
    uint64_t base = (uint64_t)&task;
    task.interrupt_stack[0] = (uint64_t)(trap_stack + sizeof trap_stack);
    task.io_map = sizeof task;
    descriptors[1] = 0x00AF9B000000FFFF;
    descriptors[2] = 0x00CF93000000FFFF;
    descriptors[3] = (sizeof task - 1) | (base & 0xFFFFFF) << 16 | 0x89ul << 40 | (base >> 24 & 0xFF) << 56;
    descriptors[4] = base >> 32;
    struct table_pointer global = {sizeof descriptors - 1, descriptors};
    __asm__ volatile("lgdt %0; ltr %w1" ::"m"(global), "r"(SELECTOR_TASK) : "memory");

    for (uint32_t number = 0; number < TRAPS; number++)
        set_gate(number, trap_entries[number], 1);
    set_gate(EVENT_VECTOR, upcall_entry, 0);
    struct table_pointer interrupts = {sizeof gates - 1, gates};
    __asm__ volatile("lidt %0" ::"m"(interrupts) : "memory");
}

/* Prints by the emergency console too: the trap may have come before the console, or from it. */
void trap_report(struct trap_frame *frame)
{
    static bool again;
    static char text[768];
    uint64_t fault;
    __asm__ volatile("mov %%cr2, %0" : "=r"(fault));
    int length = format(text, sizeof text,
                        "\r\npanic: exception %lu error %lx\r\nrip: %016lx rsp: %016lx rflags: %lx cr2: %016lx\r\n"
                        "rax: %016lx rbx: %016lx rcx: %016lx rdx: %016lx\r\n"
                        "rsi: %016lx rdi: %016lx rbp: %016lx r8: %016lx\r\n"
                        "r9: %016lx r10: %016lx r11: %016lx r12: %016lx\r\nr13: %016lx r14: %016lx r15: %016lx\r\n",
                        frame->number, frame->error_code, frame->rip, frame->rsp, frame->rflags, fault, frame->rax,
                        frame->rbx, frame->rcx, frame->rdx, frame->rsi, frame->rdi, frame->rbp, frame->r8, frame->r9,
                        frame->r10, frame->r11, frame->r12, frame->r13, frame->r14, frame->r15);
    hypercall(HYPERCALL_CONSOLE, 0, (long)length, text);
    if (!again) {
        again = true;
        print("%s", text);
        console_flush();
    }
    shut_down(SHUTDOWN_CRASH);
}

/* Faults with no table of exceptions: hardware resets then, and Xen ends the domain. */
void triple_fault(void)
{
    struct table_pointer none = {0, NULL};
    if (paravirtual)
        hypercall(HYPERCALL_SET_TRAP_TABLE, 0);
    __asm__ volatile("lidt %0; ud2" ::"m"(none) : "memory");
    __builtin_unreachable();
}
