// Exceptions through probed frames: prints "ready PID", then for each line read throws N times and prints the sum.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <unistd.h>

extern "C" __attribute__((noinline, used)) int thrower(int x)
{
    if (x % 2)
        throw std::runtime_error("odd");
    return x;
}

extern "C" __attribute__((noinline, used)) int middle(int x)
{
    int got = thrower(x);
    __asm__ volatile("" : "+r"(got));
    return got + 1;
}

extern "C" __attribute__((noinline, used)) int catcher(int x)
{
    try {
        return middle(x);
    } catch (const std::exception &) {
        return -1;
    }
}

int main()
{
    char line[64];
    setvbuf(stdout, nullptr, _IOLBF, 0);
    printf("ready %d\n", getpid());
    while (fgets(line, sizeof line, stdin)) {
        long sum = 0;
        int n = atoi(line);
        if (n == 0)
            break;
        for (int i = 0; i < n; i++)
            sum += catcher(i);
        printf("done %ld\n", sum);
    }
    return 0;
}
