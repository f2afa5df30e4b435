# A child that makes the system calls of a list, one after the other, up to an execve. It shares the caller's memory, and
# runs no other code of it: no page is copied, and the caller goes on meanwhile. It needs no stack. All signals are blocked.
# For x86-64 (arch/x86/entry/syscalls/syscall_64.tbl); script.py has it assembled, and a test that it is the same:
#     as -o script.o script.S && objcopy -O binary -j .text script.o script.bin
#
# long begin(struct clone_args *, size_t, struct call *, struct call **failed): what clone3 returns, or minus its errno.
# A call is 9 numbers: that of the system call, its 6 arguments, an address for the result or 0, and what a failure means:
#     0: the end, by exit status 125; *failed is the call then, and its first number is the errno
#     1: nothing
#     2: nothing; if there is none, the next call is left out
#     3: nothing if it is ENOENT, EACCES or ENOTDIR, which the next of several programs may not have; else as 0

        .text
begin:  mov     %rcx, %r9               # clone3 leaves this and the list alone
        mov     %rdx, %r8
        mov     $435, %eax              # clone3
        syscall
        test    %rax, %rax
        jz      child
        ret
child:  mov     %r9, %rbx
        mov     %r8, %r12
next:   mov     (%r12), %rax
        mov     8(%r12), %rdi
        mov     16(%r12), %rsi
        mov     24(%r12), %rdx
        mov     32(%r12), %r10
        mov     40(%r12), %r8
        mov     48(%r12), %r9
        syscall
        mov     56(%r12), %rsi
        mov     64(%r12), %rdi
        cmp     $-4095, %rax
        jae     failed
        test    %rsi, %rsi
        jz      done
        mov     %rax, (%rsi)
done:   cmp     $2, %rdi
        jne     on
        add     $72, %r12
on:     add     $72, %r12
        jmp     next
failed: neg     %rax
        cmp     $3, %rdi
        jb      maybe
        cmp     $2, %rax                # ENOENT
        je      on
        cmp     $13, %rax               # EACCES
        je      on
        cmp     $20, %rax               # ENOTDIR
        je      on
        jmp     end
maybe:  test    %rdi, %rdi
        jnz     on
end:    mov     %rax, (%r12)
        mov     %r12, (%rbx)
        mov     $231, %eax              # exit_group(125)
        mov     $125, %edi
        syscall
