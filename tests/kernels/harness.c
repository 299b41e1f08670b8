/* Guarded buffers, random numbers and comparison for the kernel tests, and the program: argv[1] names the table. */
#include "harness.h"

#include <float.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../suite.h"

dp_kernels kernels;
const char *table_name;

static uint64_t seed, state;
static char running_case[512];

enum { MAX_BUFFERS = 32, BAND = 512, FILLER = 0xff };

static struct buffer {
    unsigned char *mapping, *data;
    size_t mapped, bytes, shift;
} buffers[MAX_BUFFERS];
static size_t n_buffers;
static void *allocations[MAX_BUFFERS];
static size_t n_allocations;

void start_random(void)
{
    state = seed;
}

uint64_t random_bits(void) /* splitmix64 */
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

size_t random_below(size_t bound)
{
    return (size_t)(random_bits() % bound);
}

float random_uniform(void)
{
    return (float)((double)(int64_t)(random_bits() | 1) * 0x1p-63);
}

void fill(float *x, size_t n, contents kind)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = random_below(16) ? random_uniform() : 0;
        if (kind == WIDE)
            x[i] = ldexpf(x[i], (int)random_below(41) - 20);
        else if (kind == DENORMAL && random_below(3))
            x[i] = random_below(4) ? ldexpf(x[i], -126 - (int)random_below(24)) : 0;
        else if (kind == SPECIAL && !random_below(1 + n / 3))
            x[i] = (const float[]){NAN, INFINITY, -INFINITY}[random_below(3)];
    }
}

size_t random_shift(size_t element)
{
    return element * (1 + random_below(63));
}

void *place(const void *data, size_t bytes, size_t shift)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    ck_assert(n_buffers < MAX_BUFFERS);
    struct buffer *b = &buffers[n_buffers++];
    b->bytes = bytes;
    b->shift = shift;
    b->mapped = (bytes + shift + BAND + page - 1) / page * page;
    b->mapping = mmap(NULL, b->mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(b->mapping, MAP_FAILED);
    ck_assert_int_eq(mprotect(b->mapping + b->mapped, page, PROT_NONE), 0);
    memset(b->mapping, FILLER, b->mapped);
    b->data = b->mapping + b->mapped - shift - bytes;
    if (data && bytes)
        memcpy(b->data, data, bytes);
    return b->data;
}

void *allocate(size_t bytes)
{
    ck_assert(n_allocations < MAX_BUFFERS);
    void *const memory = malloc(bytes + 1);
    ck_assert_ptr_nonnull(memory);
    allocations[n_allocations++] = memory;
    return memory;
}

void release_buffers(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < n_buffers; i++) {
        const struct buffer *b = &buffers[i];
        expect_untouched("memory before a buffer", b->mapping, (size_t)(b->data - b->mapping));
        expect_untouched("memory after a buffer", b->data + b->bytes, b->shift);
        munmap(b->mapping, b->mapped + page);
    }
    for (size_t i = 0; i < n_allocations; i++)
        free(allocations[i]);
    n_buffers = n_allocations = 0;
}

void describe(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(running_case, sizeof running_case, format, arguments);
    va_end(arguments);
}

void report_failure(const char *format, ...)
{
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    ck_abort_msg("%s: %s", running_case, message);
}

void expect_near(const char *what, size_t position, float got, double expected, double bound)
{
    int good;
    if (isnan(expected))
        good = isnan(got);
    else if (isinf(expected) || fabs(expected) - bound > FLT_MAX)
        good = isinf(got) && !signbit(got) == !signbit(expected);
    else if (fabs(expected) + bound > FLT_MAX && isinf(got))
        good = !signbit(got) == !signbit(expected);
    else
        good = fabs(got - expected) <= bound;
    if (!good)
        report_failure("%s[%zu] is %.9g, expected %.9g +- %.3g", what, position, (double)got, expected, bound);
}

void expect_same(const char *what, const void *first, const void *second, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)first)[i] != ((const unsigned char *)second)[i])
            report_failure("%s: byte %zu depends on the alignment", what, i);
}

void expect_untouched(const char *what, const void *x, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)x)[i] != FILLER)
            report_failure("%s: byte %zu of %zu was overwritten", what, i, bytes);
}

size_t row_alignment(dp_type type)
{
    return type == DP_F32 || type == DP_INT8 ? 4 : 2;
}

const char *type_name(dp_type type)
{
    return (const char *const[]){"f32", "f16", "bf16", "int8"}[type];
}

/* Says which case crashed, then lets Check see the signal. */
static void report_crash(int number)
{
    static const char text[] = "crash in ";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0 || write(STDERR_FILENO, running_case, strlen(running_case)) < 0 ||
        write(STDERR_FILENO, "\n", 1) < 0)
        _exit(1);
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_crashes(void)
{
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++)
        signal(crashes[i], report_crash);
}

/* What can be tested: an ISA without its optional instructions, or with those named. */
static const struct table {
    const char *name;
    dp_isa isa;
    unsigned optional;
} tables[] = {
    {"scalar", DP_ISA_SCALAR, 0},
    {"avx2", DP_ISA_AVX2, 0},
    {"avx512", DP_ISA_AVX512, 0},
    {"avx512-bf16", DP_ISA_AVX512, DP_CPU_AVX512_BF16},
    {"avx512-vnni", DP_ISA_AVX512, DP_CPU_AVX512_VNNI},
    {"neon", DP_ISA_NEON, 0},
    {"neon-bf16", DP_ISA_NEON, DP_CPU_NEON_BF16},
    {"neon-dotprod", DP_ISA_NEON, DP_CPU_NEON_DOTPROD},
};
enum { N_TABLES = sizeof tables / sizeof *tables };

int main(int argc, char **argv)
{
    enum { SKIPPED = 77 };
    const char *const name = table_name = argc > 1 ? argv[1] : "scalar";
    const struct table *table = tables;
    unsigned all_optional = 0;
    for (size_t i = 0; i < N_TABLES; i++)
        all_optional |= tables[i].optional;
    while (table < tables + N_TABLES && strcmp(table->name, name))
        table++;
    if (table == tables + N_TABLES) {
        fprintf(stderr, "usage: %s TABLE (seed in DP_TEST_SEED), TABLE being one of\n", argv[0]);
        for (size_t i = 0; i < N_TABLES; i++)
            fprintf(stderr, "  %s\n", tables[i].name);
        return 2;
    }
    const unsigned features = dp_cpu_features();
    memset(&kernels, 0, sizeof kernels);
    if ((features & table->optional) != table->optional ||
        dp_kernels_init(&kernels, table->isa, (features & ~all_optional) | table->optional)) {
        printf("this build or this machine has no %s\n", name);
        return SKIPPED;
    }

    const char *const given = getenv("DP_TEST_SEED");
    seed = given ? strtoull(given, NULL, 0) : 20602;
    printf("kernels of %s, DP_TEST_SEED=%llu\n", name, (unsigned long long)seed);
    fflush(stdout);

    Suite *const suite = suite_create(name);
    TCase *const cases[] = {table_tests(), convert_tests(), scores_tests(), codes_tests(), signs_tests(),
                            rows_tests(),  softmax_tests(), select_tests(), rank_tests(), dense_tests()};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tcase_add_checked_fixture(cases[i], catch_crashes, NULL);
        tcase_set_timeout(cases[i], 120);
        suite_add_tcase(suite, cases[i]);
    }
    return run_suite(suite);
}
