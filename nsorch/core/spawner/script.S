# A child that makes the system calls of a list, one after the other, up to an execve. It shares the caller's memory, and
# runs no other code of it: no page is copied, and the caller goes on meanwhile. It needs no stack. All signals are blocked.
# For x86-64 (arch/x86/entry/syscalls/syscall_64.tbl); script.py has it assembled, and a test that it is the same:
#     as -o script.o script.S && objcopy -O binary -j .text script.o script.bin
#
# long begin(struct clone_args *, size_t, struct call *, struct call **failed): what clone3 returns, or minus its errno.
# A call is 12 numbers:
#     that of the system call, and its 6 arguments
#     the way to the first number that is to become the result: in bytes, from here. That one has the way to the next, from
#         there, until it does; 0 is the end
#     bits of the errnos (modulo 64) that don't end all
#     the ways to the call to go on with, in bytes from this one: after a result that isn't 0, after 0 (which a new child has
#         of its own clone3), and after such an errno
# What fails otherwise is the end, by exit status 125; *failed is the call then, and its first number is the errno.

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
        cmp     $-4095, %rax
        jae     failed
        lea     56(%r12), %rsi
        mov     (%rsi), %rdx
store:  test    %rdx, %rdx
        jz      done
        add     %rdx, %rsi
        mov     (%rsi), %rdx
        mov     %rax, (%rsi)
        jmp     store
done:   mov     72(%r12), %rdx
        test    %rax, %rax
        cmovz   80(%r12), %rdx
        add     %rdx, %r12
        jmp     next
failed: neg     %rax
        mov     64(%r12), %rdi
        bt      %rax, %rdi
        jnc     end
        add     88(%r12), %r12
        jmp     next
end:    mov     %rax, (%r12)
        mov     %r12, (%rbx)
        mov     $231, %eax              # exit_group(125)
        mov     $125, %edi
        syscall
