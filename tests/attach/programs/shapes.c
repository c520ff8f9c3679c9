/*
 * Functions in the shapes that decide whether a probe fits. Called once a millisecond, so that patches are run.
 */
#include <stdio.h>
#include <string.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

#define ASM(name, body) \
    __asm__(".text\n.p2align 4\n.globl " name "\n.type " name ",@function\n" name ":\n" body ".size " name ", .-" name "\n")

/* 3 bytes, padding behind: a 5-byte jump fits into function and padding. */
ASM("tiny", "  mov %edi, %eax\n  ret\n");
__asm__(".p2align 4, 0x90\n");
/* 3 bytes, the next function directly behind, padding after that: a short jump and an island. */
ASM("tight", "  mov %edi, %eax\n  ret\n");
__asm__(".globl neighbour\n.type neighbour,@function\nneighbour:\n  lea 1(%rdi), %eax\n  ret\n.size neighbour, .-neighbour\n"
        ".p2align 5, 0x90\n");
/* One byte: nothing fits. */
ASM("one", "  ret\n");
__asm__(".globl two\n.type two,@function\ntwo:\n  ret\n.size two, .-two\n");
/* A loop back to the third byte. */
ASM("looping", "  xor %eax, %eax\n0:add $1, %eax\n  dec %edi\n  jnz 0b\n  ret\n");
/* Starts with a call. */
ASM("calling", "  call tiny\n  add $1, %eax\n  ret\n");
/* An indirect jump: only its entry may be probed. */
ASM("jumping", "  lea 0f(%rip), %rax\n  add $1, %edi\n  nop\n  nop\n  jmp *%rax\n0:lea 2(%rdi), %eax\n  ret\n");
/* Enters with a trap in the way of the patch. */
ASM("trapping", "  test %edi, %edi\n  jns 0f\n  ud2\n0:mov %edi, %eax\n  ret\n");

int tiny(int), tight(int), neighbour(int), looping(int), calling(int), jumping(int), trapping(int);
void one(void), two(void);

int main(void)
{
    unsigned long wrong = 0;
    size_t length = 0;
    size_t (*volatile measure)(const char *) = strlen; /* not inlined */
    struct timespec t = {0, 1000000};
    puts("ready");
    fflush(stdout);
    char text[64] = "some text to measure", line[64];
    fd_set set;
    do {
        wrong += tiny(5) != 5 || tight(6) != 6 || neighbour(7) != 8 || looping(3) != 3 || calling(4) != 5;
        wrong += jumping(1) != 4 || trapping(9) != 9;
        one();
        two();
        length = measure(text + (length & 1));
        wrong += length == 0;
        nanosleep(&t, NULL);
        FD_ZERO(&set);
        FD_SET(0, &set);
        struct timeval none = {0, 0};
        if (select(1, &set, NULL, NULL, &none) > 0)
            break;
    } while (1);
    if (fgets(line, sizeof line, stdin) == NULL)
        return 2;
    printf("%lu\n", wrong);
    return wrong != 0;
}
