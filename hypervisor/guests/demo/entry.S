/* The ways in by PVH and as a paravirtual domain, the exception and event entries, and hypercalls. */

#define STACK_SIZE 16384

    /* ELF note XEN_ELFNOTE_PHYS32_ENTRY (public/elfnote.h): where a PVH domain starts. */
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry

    /* For a paravirtual domain: 64-bit code, mapped one to one from address 0 (VIRT_BASE). */
    .macro note type, value
    .balign 4
    .long 4, 8, \type
    .asciz "Xen"
    .quad \value
    .endm
    .macro note_text type, length, text
    .balign 4
    .long 4, \length, \type
    .asciz "Xen"
    .asciz "\text"
    .endm
    note 1, paravirtual_entry
    note 3, 0
    note 4, 0
    note_text 5, 8, "xen-3.0"
    note_text 6, 7, "kronos"
    note_text 8, 8, "generic"

    /* 32-bit mode, paging off, EBX is the address of hvm_start_info (docs/misc/pvh.pandoc). */
    .section .text.entry, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cld
    movl %ebx, %ebp
    movl $page_table_low + 3, page_directory /* the first 2 MiB by pages of 4 KiB */
    movl $page_table_low, %edi
    movl $3, %eax
    xorl %ecx, %ecx
1:  movl %eax, (%edi, %ecx, 8)
    addl $0x1000, %eax
    incl %ecx
    cmpl $512, %ecx
    jne 1b
    movl $page_directory + 8, %edi          /* the rest of the first GiB by 2 MiB, without execution */
    movl $0x200083, %eax
    movl $511, %ecx
2:  movl %eax, (%edi)
    movl $0x80000000, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b
    movl $page_directory + 3, page_pointers
    movl $page_pointers + 3, page_root

    movl $0x20, %eax                        /* CR4.PAE */
    movl %eax, %cr4
    movl $page_root, %eax
    movl %eax, %cr3
    movl $0xC0000080, %ecx                  /* EFER: LME and NXE */
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl $0x80010001, %eax                  /* CR0: PG, WP, PE */
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $long_mode

    .code64
long_mode:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $stack_top, %esp
    movl %ebp, %edi
    xorl %ebp, %ebp
    call kernel_main
3:  cli
    hlt
    jmp 3b

    /* RSI is the address of start_info; all is mapped. */
paravirtual_entry:
    cld
    movl $stack_top, %esp
    movb $2, hypercall_by
    movq %rsi, %rdi
    xorl %ebp, %ebp
    call paravirtual_main

    .section .rodata
    .balign 8
boot_gdt:
    .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .quad boot_gdt

    /* long hypercall(number, a, b, c, d, e): the convention of public/arch-x86/xen-x86_64.h. */
    .text
    .globl hypercall
hypercall:
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rdx, %rsi
    movq %rcx, %rdx
    movq %r8, %r10
    movq %r9, %r8
    cmpb $1, hypercall_by
    je 1f
    ja 2f
    vmcall
    ret
1:  vmmcall
    ret
2:  syscall
    ret

    /* An event is pending: say so, and let the main loop look. No other interrupt ever comes. */
    .globl upcall_entry
upcall_entry:
    movb $0, shared_info_page
    movb $1, events_raised
    iretq

    /* The same by Xen's callback, whose frame has RCX and R11 on top, and whose way back is the hypercall iret. */
    .globl paravirtual_upcall_entry
paravirtual_upcall_entry:
    movb $0, shared_info_page
    movb $1, events_raised
    popq %rcx
    popq %r11
    pushq $0
    pushq %rcx
    pushq %r11
    pushq %rax
    movl $23, %eax
    syscall

    .globl paravirtual_failsafe_entry
paravirtual_failsafe_entry:             /* RCX, R11, DS, ES, FS, GS: we have no users, so this is a bug */
    addq $48, %rsp
    pushq $0
    jmp trap_13

    /* Exceptions: make all frames alike (number and error code), save the registers, and tell. */
    .macro trap number, has_code=0
trap_\number:
    .if \has_code == 0
    pushq $0
    .endif
    pushq $\number
    jmp trap_common
    .endm
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 16, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 31
    trap \number
    .endr
    .irp number, 8, 10, 11, 12, 13, 14, 17, 21, 29, 30
    trap \number, 1
    .endr

    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27
paravirtual_trap_\number:
    popq %rcx
    popq %r11
    jmp trap_\number
    .endr
    .irp number, 28, 29, 30, 31
paravirtual_trap_\number:
    popq %rcx
    popq %r11
    jmp trap_\number
    .endr

trap_common:
    .irp register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    pushq %\register
    .endr
    movq %rsp, %rdi
    call trap_report

    .section .rodata
    .balign 8
    .globl trap_entries
trap_entries:
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27
    .quad trap_\number
    .endr
    .quad trap_28, trap_29, trap_30, trap_31
    .globl paravirtual_trap_entries
paravirtual_trap_entries:
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27
    .quad paravirtual_trap_\number
    .endr
    .quad paravirtual_trap_28, paravirtual_trap_29, paravirtual_trap_30, paravirtual_trap_31

    .section .bss.pages, "aw", @nobits
    .balign 4096
    .globl page_root, page_pointers, page_directory, page_table_low, stack_guard, shared_info_page
page_root:      .skip 4096
page_pointers:  .skip 4096
page_directory: .skip 4096
page_table_low: .skip 4096
shared_info_page: .skip 4096
stack_guard:    .skip 4096
    .skip STACK_SIZE
stack_top:
