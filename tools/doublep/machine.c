/* machine.c: see machine.h. Plain loops over vector types; compiled with contraction on, so that a * x + b is one fused
 * instruction where the target has it. */
#include "machine.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <omp.h>

#include "clock.h"

enum { PASSES = 7 };

/* Clones for the vector extensions of x86, the best chosen when the program starts; elsewhere the baseline has them. */
#if defined(__x86_64__)
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST
#endif

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof(values[0]), compare_doubles);
    return values[n / 2];
}

/* ---- Bandwidth ------------------------------------------------------------------------------------------------ */

/* n: a multiple of 64. Integer sums, which a compiler may reorder, in streams that the prefetchers follow. */
WIDEST static uint64_t sum_words(const uint64_t *words, size_t n)
{
    uint64_t sums[32] = {0}, sum = 0;
    for (size_t i = 0; i < n; i += 32)
        for (size_t j = 0; j < 32; j++)
            sums[j] += words[i + j];
    for (size_t j = 0; j < 32; j++)
        sum += sums[j];
    return sum;
}

static uint64_t *create_buffer(size_t bytes)
{
    uint64_t *const words = aligned_alloc(2 << 20, bytes);
    if (!words)
        return NULL;
    madvise(words, bytes, MADV_HUGEPAGE);
    memset(words, 1, bytes);
    return words;
}

double machine_read_bandwidth(int n_threads, size_t bytes_per_thread)
{
    const size_t bytes = (bytes_per_thread + (2 << 20) - 1) / (2 << 20) * (2 << 20);
    double seconds[PASSES] = {0};
    int team = 0, failed = 0;
    uint64_t check = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : failed, check)
    {
        uint64_t *const words = create_buffer(bytes); /* touched, and so placed, by its reader */
        failed += !words;
#pragma omp single
        team = omp_get_num_threads();
        for (int pass = 0; pass < PASSES; pass++) {
#pragma omp barrier
            const uint64_t start = clock_ns();
            if (words)
                check += sum_words(words, bytes / sizeof(*words));
#pragma omp barrier
#pragma omp master
            seconds[pass] = (double)(clock_ns() - start) * 1e-9;
        }
        free(words);
    }
    /* The sum must be used, or the loop is gone; its bytes are all ones. */
    if (failed || check == 0)
        return -1;
    return (double)bytes * team / median(seconds, PASSES);
}

/* ---- Gathering -------------------------------------------------------------------------------------------------- */

enum { LINE = 64, LINE_WORDS = 8, GATHER_PASSES = 5, GATHER_BYTES = 16 << 20 /* a thread and pass */ };

/* Part number `part` of `parts`. */
static unsigned read_part(const char *memory, size_t bytes, int part, int parts)
{
    const size_t lines = bytes / LINE, first = lines * (size_t)part / (size_t)parts;
    const size_t last = lines * ((size_t)part + 1) / (size_t)parts;
    unsigned sum = 0;
    for (size_t i = first; i < last; i++)
        sum += (unsigned char)memory[i * LINE];
    return sum;
}

unsigned machine_flush(const char *memory, size_t bytes, int n_threads)
{
    unsigned sum = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : sum)
    sum += read_part(memory, bytes, omp_get_thread_num(), omp_get_num_threads());
    return sum;
}

/* Reads the runs in the order of `order`, prefetching `ahead` lines ahead across the runs' ends. */
WIDEST static uint64_t sum_runs(const uint64_t *words, const uint32_t *order, size_t n_runs, unsigned run_shift,
                                size_t ahead)
{
    const size_t n_lines = n_runs << run_shift, mask = ((size_t)1 << run_shift) - 1;
    uint64_t sums[LINE_WORDS] = {0}, sum = 0;
    for (size_t i = 0; i < n_lines; i++) {
        const size_t next = i + ahead < n_lines ? i + ahead : i;
        const size_t later = ((size_t)order[next >> run_shift] << run_shift) + (next & mask);
        const size_t line = ((size_t)order[i >> run_shift] << run_shift) + (i & mask);
        __builtin_prefetch(words + later * LINE_WORDS, 0, 2);
        for (size_t j = 0; j < LINE_WORDS; j++)
            sums[j] += words[line * LINE_WORDS + j];
    }
    for (size_t j = 0; j < LINE_WORDS; j++)
        sum += sums[j];
    return sum;
}

/* 0 .. n - 1 in random order; NULL where memory runs out. */
static uint32_t *create_order(size_t n, uint64_t seed)
{
    uint32_t *const order = malloc(n * sizeof(*order));
    if (!order)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const size_t j = (size_t)((seed >> 32) * (i + 1) >> 32);
        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
    return order;
}

double machine_gather_bandwidth(int n_threads, size_t bytes_per_thread, size_t run_bytes, const char *flush,
                                size_t flush_bytes)
{
    static const size_t distances[] = {16, 32, 64, 128};
    enum { DISTANCES = sizeof(distances) / sizeof(distances[0]) };
    const size_t unit = run_bytes > (2 << 20) ? run_bytes : 2 << 20;
    const size_t bytes = (bytes_per_thread + unit - 1) / unit * unit, n_runs = bytes / run_bytes;
    const size_t wanted = GATHER_BYTES / run_bytes, n_pass = wanted == 0 ? 1 : wanted < n_runs ? wanted : n_runs;
    unsigned run_shift = 0;
    while ((size_t)LINE_WORDS * sizeof(uint64_t) << run_shift < run_bytes)
        run_shift++;
    double seconds[DISTANCES][GATHER_PASSES] = {{0}};
    int team = 0, failed = 0;
    uint64_t check = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : failed, check)
    {
        uint64_t *const words = create_buffer(bytes);
        uint32_t *const order = create_order(n_runs, (uint64_t)omp_get_thread_num() + 1);
        failed += !words || !order;
#pragma omp single
        team = omp_get_num_threads();
        for (int pass = 0; pass < DISTANCES * GATHER_PASSES; pass++) {
            const size_t first = (size_t)pass * n_pass % (n_runs - n_pass + 1); /* other runs each time */
            if (words && order) /* see time_methods in bench_run.c */
                check += sum_runs(words, order + first, n_pass, run_shift, distances[0]);
            check += read_part(flush, flush_bytes, omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
            const uint64_t start = clock_ns();
            if (words && order)
                check += sum_runs(words, order + first, n_pass, run_shift, distances[pass % DISTANCES]);
#pragma omp barrier
#pragma omp master
            seconds[pass % DISTANCES][pass / DISTANCES] = (double)(clock_ns() - start) * 1e-9;
        }
        free(order);
        free(words);
    }
    if (failed || check == 0)
        return -1;
    double best = median(seconds[0], GATHER_PASSES);
    for (int i = 1; i < DISTANCES; i++) {
        const double other = median(seconds[i], GATHER_PASSES);
        best = other < best ? other : best;
    }
    return (double)(n_pass * run_bytes) * team / best;
}

/* ---- Peak ----------------------------------------------------------------------------------------------------- */

enum { CHAINS = 12 }; /* independent sums: more than latency times units, fewer than registers */

/* One loop per vector width: CHAINS chains of x = x * a + b, kept in registers. */
#define DEFINE_CHAINS(name, bytes, attributes)                                                                         \
    typedef float name##_vector __attribute__((vector_size(bytes)));                                                   \
    attributes static float name(size_t n, float a, float b)                                                           \
    {                                                                                                                  \
        name##_vector x[CHAINS], total;                                                                                \
        memset(&total, 0, sizeof(total));                                                                              \
        for (int c = 0; c < CHAINS; c++)                                                                               \
            x[c] = total + (float)c;                                                                                   \
        const name##_vector va = total + a, vb = total + b;                                                            \
        for (size_t i = 0; i < n; i++) {                                                                               \
            _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++) x[c] = x[c] * va + vb;                           \
        }                                                                                                              \
        for (int c = 0; c < CHAINS; c++)                                                                               \
            total += x[c];                                                                                             \
        return total[0] + total[1];                                                                                    \
    }

#if defined(__x86_64__)
DEFINE_CHAINS(chains_avx512, 64, __attribute__((target("avx512f"))))
DEFINE_CHAINS(chains_avx2, 32, __attribute__((target("avx2,fma"))))
#endif
DEFINE_CHAINS(chains_baseline, 16, )

typedef struct chains_kernel {
    float (*run)(size_t n, float a, float b);
    size_t lanes;
} chains_kernel;

static chains_kernel widest_kernel(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return (chains_kernel){chains_avx512, 16};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return (chains_kernel){chains_avx2, 8};
#endif
    return (chains_kernel){chains_baseline, 4};
}

double machine_peak_flops(int n_threads)
{
    const size_t steps = 20 << 20;
    const chains_kernel kernel = widest_kernel();
    double seconds[PASSES] = {0};
    int team = 0;
    float check = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : check)
    {
#pragma omp single
        team = omp_get_num_threads();
        for (int pass = 0; pass < PASSES; pass++) {
#pragma omp barrier
            const uint64_t start = clock_ns();
            check += kernel.run(steps, 0.5f, 1.0f);
#pragma omp barrier
#pragma omp master
            seconds[pass] = (double)(clock_ns() - start) * 1e-9;
        }
    }
    if (!(check > 0))
        return -1;
    return 2.0 * (double)steps * CHAINS * (double)kernel.lanes * team / median(seconds, PASSES);
}
