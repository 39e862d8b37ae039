/* The way in by PVH, to 64-bit mode with all of the first 4 GiB where it is, and hypercalls. */

    /* ELF note XEN_ELFNOTE_PHYS32_ENTRY (public/elfnote.h): where a PVH domain starts. */
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry

    /* 32-bit mode, paging off, EBX is the address of hvm_start_info (docs/misc/pvh.pandoc). */
    .section .text.entry, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cld
    movl %ebx, %ebp
    movl $page_directories, %edi            /* four directories: 2048 pages of 2 MiB, which may all be written */
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b
    movl $page_directories + 3, page_pointers
    movl $page_directories + 0x1003, page_pointers + 8
    movl $page_directories + 0x2003, page_pointers + 16
    movl $page_directories + 0x3003, page_pointers + 24
    movl $page_pointers + 3, page_root

    movl $0x20, %eax                        /* CR4.PAE */
    movl %eax, %cr4
    movl $page_root, %eax
    movl %eax, %cr3
    movl $0xC0000080, %ecx                  /* EFER.LME */
    rdmsr
    orl $0x100, %eax
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
    movl $stack_top, %esp
    movl %ebp, %edi
    call unbootable_main
    /* Nothing that could interrupt is set up; with interrupts off HLT would mean that the domain is over. */
2:  sti
    hlt
    jmp 2b

    .section .rodata
    .balign 8
boot_gdt:
    .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .quad boot_gdt

    /* long hypercall(number, a, b): the convention of public/arch-x86/xen-x86_64.h. */
    .text
    .globl hypercall
hypercall:
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rdx, %rsi
    cmpb $0, hypercall_by_vmmcall
    jne 1f
    vmcall
    ret
1:  vmmcall
    ret

    .section .bss.pages, "aw", @nobits
    .balign 4096
page_root:        .skip 4096
page_pointers:    .skip 4096
page_directories: .skip 4 * 4096
    .skip 4096
stack_top:
