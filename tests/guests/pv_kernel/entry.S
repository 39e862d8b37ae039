/* The entry, hypercalls, callbacks and the users of the kernel that tests paravirtual CPUs. */

    .macro note type, value:vararg
    .long 4, 8, \type
    .asciz "Xen"
    .quad \value
    .endm
    .section .note.Xen, "a", @note
    .balign 4
    note 1, start                       /* ENTRY */
    note 2, hypercall_page
    note 3, 0xFFFFFFFF80000000          /* VIRT_BASE */
    note 15, 0x8000000000               /* INIT_P2M */
    note 16, 1                          /* MOD_START_PFN */

    .text
    .globl start
start:
    movq %rsi, start_info
    movq %rsp, first_stack
    pushfq
    popq first_flags
    movw %cs, first_selectors
    movw %ss, first_selectors + 2
    call kernel_main
1:  jmp 1b

    .balign 4096
    .globl hypercall_page
hypercall_page: .skip 4096

    .globl hypercall
hypercall:                              /* long hypercall(long number, a, b, c, d, e) */
    movl %edi, %eax
    shll $5, %eax
    movslq %eax, %rax
    addq $hypercall_page, %rax
    movq %rsi, %rdi
    movq %rdx, %rsi
    movq %rcx, %rdx
    movq %r8, %r10
    movq %r9, %r8
    jmp *%rax

    /* Traps: all frames alike (number, code), all registers saved, `trapped` may change them; back by iret. */
    .macro trap number, has_code=0
    .globl trap_\number
trap_\number:
    popq %rcx
    popq %r11
    .if \has_code == 0
    pushq $-1
    .endif
    pushq $\number
    jmp trap_common
    .endm
    trap 0
    trap 1
    trap 3
    trap 6
    trap 7
    trap 11, 1
    trap 13, 1
    trap 14, 1
    trap 128
    trap 129

    .globl event_entry, syscall_entry, failsafe_entry
event_entry:
    popq %rcx
    popq %r11
    pushq $-1
    pushq $1000
    jmp trap_common
syscall_entry:
    popq %rcx
    popq %r11
    pushq $-1
    pushq $1001
    jmp trap_common
failsafe_entry:                         /* RCX, R11, DS, ES, FS, GS, then the frame */
    popq %rcx
    popq %r11
    addq $32, %rsp
    pushq $-1
    pushq $1002

trap_common:
    .irp register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    pushq %\register
    .endr
    movq %rsp, %rdi
    cld
    call trapped
    .globl leave
leave:                                  /* the frame is at RSP */
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax
    popq %\register
    .endr
    addq $16, %rsp
    pushq $0                            /* flags of iret: RCX and R11 are restored */
    pushq %rcx
    pushq %r11
    pushq %rax
    movl $23, %eax
    syscall
    ud2

    .globl leave_with
leave_with:                             /* leave_with(frame): to wherever it says */
    movq %rdi, %rsp
    jmp leave

    /* void direct_iret(void): to ourselves, by the selectors that a kernel has on hardware. */
    .globl direct_iret
direct_iret:
    movq %rsp, %rax
    pushq $0xE02B
    pushq %rax
    pushq $0x202
    pushq $0xE033
    pushq $2f
    iretq
2:  ret

    .globl forced_cpuid
forced_cpuid:                           /* forced_cpuid(leaf, values): CPUID by Xen's prefix */
    pushq %rbx
    movl %edi, %eax
    xorl %ecx, %ecx
    .byte 0x0F, 0x0B, 0x78, 0x65, 0x6E
    cpuid
    movl %eax, (%rsi)
    movl %ebx, 4(%rsi)
    movl %ecx, 8(%rsi)
    movl %edx, 12(%rsi)
    popq %rbx
    ret

    /* What runs as a user: a page of its own, mapped at USER in the users' tables only. */
    .balign 4096
    .globl user_page
user_page:
    movq %gs:0, %r12                    /* the users' GS */
    movl $0x1234, %eax
    movq $5, %rbx
    syscall                             /* +0x14 comes back */
    movq %rax, %r13
    int $0x80
    int $0x81
    movl $0x77, %ebx
    hlt
    movq %rdi, %rax
    movq (%rax), %rax                   /* RDI is an address of the kernel's */
    movl $0xD01E, %eax
    syscall
    ud2
    .balign 4096
    .globl user_compat
user_compat:
    .code32
    movl $0x3232, %eax
    int $0x80
    ud2
    .code64
    .balign 4096
