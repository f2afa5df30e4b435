# PID 1 of a worker: starts the command, reaps orphans, passes signals on, and ends as the command does.
# For x86-64 (arch/x86/entry/syscalls/syscall_64.tbl); pid1.py has it assembled, and a test that it is the same:
#     as -o pid1.o pid1.S && objcopy -O binary -j .text pid1.o pid1.bin
#
# argv: name, a flag ("1": a session for the command), 8 bytes that stand for the job, the programs to try, of which the
# last is followed by "", and the command's own arguments; the environment and descriptors 0 to 2 are the command's, too.
# Or the flag is "2": process 2 is there already, and waits for a byte from descriptor 5, a socket whose end of file says
# that it has executed the command, or died. It must not do so before this process can't be traced.
# All signals are blocked, so that each waits for rt_sigtimedwait, also those that PID 1 has no handler for.
# Descriptor 3, a socket, is told whether the command's exec went well: the errno, or 0. Its end of file says that the
# command's pid is known, and that it may be reaped.
# Descriptor 4, a pipe, is told of the end: the 8 bytes, and the wait status.

        .text
        .globl  _start
_start: mov     (%rsp), %rax
        lea     16(%rsp, %rax, 8), %r14 # the environment
        mov     16(%rsp), %rbx          # the flags
        mov     24(%rsp), %r15          # the job; later in rbp
        lea     32(%rsp), %r13          # the programs
        mov     %r13, %r12              # the command's arguments
skip:   mov     (%r12), %rax
        add     $8, %r12
        cmpb    $0, (%rax)
        jne     skip
        mov     $157, %eax              # prctl(PR_SET_NAME, "nsorch-init")
        mov     $15, %edi
        lea     name(%rip), %rsi
        syscall
        mov     $436, %eax              # close_range(3, ~0, CLOSE_RANGE_CLOEXEC)
        mov     $3, %edi
        mov     $-1, %esi
        mov     $4, %edx
        syscall
        cmpb    $'2', (%rbx)
        je      adopt
        mov     $58, %eax               # vfork(): the child borrows the stack until its exec
        syscall
        test    %eax, %eax
        jg      parent
        jnz     none
        cmpb    $'1', (%rbx)
        jne     unmask
        mov     $112, %eax              # setsid()
        syscall
unmask: push    $0
        mov     $14, %eax               # rt_sigprocmask(SIG_SETMASK, &none, NULL, 8)
        mov     $2, %edi
        mov     %rsp, %rsi
        xor     %edx, %edx
        mov     $8, %r10d
        syscall
try:    mov     $59, %eax               # execve
        mov     (%r13), %rdi
        mov     %r12, %rsi
        mov     %r14, %rdx
        syscall
        add     $8, %r13
        mov     (%r13), %rdi
        cmpb    $0, (%rdi)
        je      none
        cmp     $-2, %eax               # ENOENT: the next one may be there
        je      try
        cmp     $-13, %eax              # EACCES
        je      try
        cmp     $-20, %eax              # ENOTDIR
        je      try
none:   neg     %eax
        push    %rax
        mov     $1, %eax                # write(3, &errno, 4)
        mov     $3, %edi
        mov     %rsp, %rsi
        mov     $4, %edx
        syscall
        mov     $231, %eax              # exit_group(125)
        mov     $125, %edi
        syscall
adopt:  mov     $157, %eax              # prctl(PR_SET_DUMPABLE, 0)
        mov     $4, %edi
        xor     %esi, %esi
        syscall
        mov     $1, %eax                # write(5, …, 1)
        mov     $5, %edi
        mov     %rbx, %rsi
        mov     $1, %edx
        syscall
        xor     %eax, %eax              # read(5, …, 1)
        mov     $5, %edi
        mov     %rbx, %rsi
        mov     $1, %edx
        syscall
        mov     $3, %eax                # close(5)
        mov     $5, %edi
        syscall
parent: mov     (%r15), %rbp
        lea     16(%rsp), %rbx          # argv[1]: nobody is to take us for the command
        mov     $2, %ecx                # two lists: arguments, environment
string: mov     (%rbx), %rdi
        add     $8, %rbx
        test    %rdi, %rdi
        jz      list
letter: cmpb    $0, (%rdi)
        je      string
        movb    $0, (%rdi)
        inc     %rdi
        jmp     letter
list:   loop    string
        mov     $436, %eax              # close_range(0, 2, 0)
        xor     %edi, %edi
        mov     $2, %esi
        xor     %edx, %edx
        syscall
        mov     $80, %eax               # chdir("/"): what is mounted elsewhere isn't busy for us
        lea     root(%rip), %rdi
        syscall
        push    $0
        mov     $1, %eax                # write(3, &0, 4)
        mov     $3, %edi
        mov     %rsp, %rsi
        mov     $4, %edx
        syscall
        xor     %eax, %eax              # read(3, …, 8): nothing comes but the end of file
        mov     $3, %edi
        mov     %rsp, %rsi
        mov     $8, %edx
        syscall
        mov     $3, %eax                # close(3)
        mov     $3, %edi
        syscall
        push    $-1                     # a mask of all signals
        sub     $16, %rsp               # the report: the job, the wait status
reap:   mov     $61, %eax               # wait4(-1, &status, WNOHANG, NULL)
        mov     $-1, %rdi
        lea     8(%rsp), %rsi
        mov     $1, %edx
        xor     %r10d, %r10d
        syscall
        cmp     $2, %eax
        je      end
        test    %eax, %eax
        jg      reap
wait:   mov     $128, %eax              # rt_sigtimedwait(&mask, NULL, NULL, 8)
        lea     16(%rsp), %rdi
        xor     %esi, %esi
        xor     %edx, %edx
        mov     $8, %r10d
        syscall
        cmp     $17, %eax               # SIGCHLD
        je      reap
        test    %eax, %eax
        jle     wait                    # interrupted: stopped and continued
        mov     %eax, %esi
        mov     $62, %eax               # kill(2, signal)
        mov     $2, %edi
        syscall
        jmp     wait
end:    mov     %rbp, (%rsp)
        mov     $1, %eax                # write(4, &report, 12)
        mov     $4, %edi
        mov     %rsp, %rsi
        mov     $12, %edx
        syscall
        mov     8(%rsp), %eax           # the exit status, or 128 and the signal
        mov     %eax, %edi
        shr     $8, %edi
        and     $127, %eax
        jz      out
        lea     128(%rax), %edi
out:    mov     $231, %eax              # exit_group: the kernel kills whoever is left
        syscall
name:   .asciz  "nsorch-init"
root:   .asciz  "/"
