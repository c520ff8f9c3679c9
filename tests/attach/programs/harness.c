/*
 * Runs machine code with given registers and flags and records what it leaves.
 * run(code, in, out): registers in the order of `in`; the code ends by jumping to one of the exits.
 */
#include <stdint.h>

static uint64_t ub_out[19] __attribute__((used)); /* rax rcx rdx rbx rsp rbp rsi rdi r8..r15, flags, which exit, popped return address */
static uint64_t ub_rsp __attribute__((used));
static uint64_t ub_code __attribute__((used));
static uint64_t ub_stack[1024] __attribute__((used, aligned(16)));

uint64_t *ub_result(void)
{
    return ub_out;
}

__asm__(".text\n"
        ".globl ub_run, ub_exit0, ub_exit1, ub_called\n"
        "ub_run:\n"
        "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "  mov %rsp, ub_rsp(%rip)\n"
        "  mov %rdi, ub_code(%rip)\n"
        "  mov %rsi, %rax\n"
        "  lea ub_stack+4096(%rip), %rsp\n"
        "  push 128(%rax); popfq\n"
        "  mov 8(%rax), %rcx; mov 16(%rax), %rdx; mov 24(%rax), %rbx; mov 40(%rax), %rbp\n"
        "  mov 48(%rax), %rsi; mov 56(%rax), %rdi; mov 64(%rax), %r8; mov 72(%rax), %r9\n"
        "  mov 80(%rax), %r10; mov 88(%rax), %r11; mov 96(%rax), %r12; mov 104(%rax), %r13\n"
        "  mov 112(%rax), %r14; mov 120(%rax), %r15; mov (%rax), %rax\n"
        "  jmp *ub_code(%rip)\n"
        "ub_called:\n" /* the target of calls: where would they return to? */
        "  popq ub_out+144(%rip)\n"
        "  jmp ub_exit1\n"
        "ub_exit0:\n"
        "  movq $0, ub_out+136(%rip)\n"
        "  jmp 1f\n"
        "ub_exit1:\n"
        "  movq $1, ub_out+136(%rip)\n"
        "1:mov %rax, ub_out+0(%rip); mov %rcx, ub_out+8(%rip); mov %rdx, ub_out+16(%rip); mov %rbx, ub_out+24(%rip)\n"
        "  mov %rsp, ub_out+32(%rip); mov %rbp, ub_out+40(%rip); mov %rsi, ub_out+48(%rip); mov %rdi, ub_out+56(%rip)\n"
        "  mov %r8, ub_out+64(%rip); mov %r9, ub_out+72(%rip); mov %r10, ub_out+80(%rip); mov %r11, ub_out+88(%rip)\n"
        "  mov %r12, ub_out+96(%rip); mov %r13, ub_out+104(%rip); mov %r14, ub_out+112(%rip)\n"
        "  mov %r15, ub_out+120(%rip)\n"
        "  pushfq; popq ub_out+128(%rip)\n"
        "  cld\n"
        "  mov ub_rsp(%rip), %rsp\n"
        "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "  ret\n");
