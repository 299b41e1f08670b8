/* bench_kernels.c: every kernel of the table on one thread, a column per ISA that this machine runs: GB/s for kernels that
 * stream, GFLOP/s for products. Operands lie in the L2 cache, or, in the cases that say so, in memory.
 *
 *     bench_kernels [--json] [NAME]    only kernels whose name contains NAME */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels.h"

enum {
    DIM = 128,
    HEADS = 4,         /* query heads that share a KV head */
    ROWS = 512,        /* 128 KiB of bf16 rows */
    PANELS = 32,       /* 66 KiB */
    VALUES = 16384,    /* 64 KiB of floats */
    TILE = 128,        /* of products */
    MEMORY_ROWS = 1 << 19, /* 128 MiB of bf16 rows */
    BATCH = 128,           /* rows of a call on rows in memory; the next batch is fetched meanwhile */
    CLUSTER = 24,          /* tokens */
    CLUSTERS = 20,
    PASSES = 9,
    HUGE_PAGE = 2 << 20,
};
static const double pass_seconds = 0.02;

typedef struct operands {
    float *q, *out, *x, *y, *spread, *tile_a, *tile_b, *tile_c;
    uint16_t *sizes, *spreads, *limits; /* bf16 */
    uint8_t *flags, *marks;
    uint16_t *indices;
    int32_t *sums; /* [HEADS] */
    float *ones;   /* [HEADS] */
    void *rows, *memory;
    dp_row *row, *tile_row; /* the rows of `rows` in random order, those of tile_a */
    volatile float sink;
} operands;

typedef struct bench_case {
    const char *name;
    void (*run)(const dp_kernels *k, operands *o);
    double bytes, flops; /* of one run; flops = 0: report bytes */
} bench_case;

/* ---- The cases ----------------------------------------------------------------------------------------------------- */

#define CASE(name) static void run_##name(const dp_kernels *k, operands *o)

CASE(f32_to_bf16) { k->from_f32[DP_BF16](o->rows, o->x, VALUES); }
CASE(f32_to_f16) { k->from_f32[DP_F16](o->rows, o->x, VALUES); }
CASE(bf16_to_f32) { k->to_f32[DP_BF16](o->y, o->rows, VALUES); }
CASE(f16_to_f32) { k->to_f32[DP_F16](o->y, o->rows, VALUES); }
CASE(score_panels) { k->score_panels(o->q, HEADS, DIM, o->rows, PANELS, o->out, PANELS * DP_PANEL); }
CASE(score_panels_memory)
{
    for (size_t i = 0; i < MEMORY_ROWS / DP_PANEL; i += PANELS)
        k->score_panels(o->q, HEADS, DIM, (const int8_t *)o->memory + i * dp_panel_bytes(DIM), PANELS, o->out,
                        PANELS * DP_PANEL);
}
CASE(key_logits_bf16) { k->key_logits[DP_BF16](o->q, HEADS, DIM, o->row, ROWS, 0, 0.1f, o->out, ROWS); }
CASE(key_logits_f16) { k->key_logits[DP_F16](o->q, HEADS, DIM, o->row, ROWS, 0, 0.1f, o->out, ROWS); }
CASE(key_logits_int8) { k->key_logits[DP_INT8](o->q, HEADS, DIM, o->row, ROWS, 0, 0.1f, o->out, ROWS); }
CASE(key_logits_f32) { k->key_logits[DP_F32](o->q, HEADS, DIM, o->tile_row, TILE, 0, 0.1f, o->out, TILE); }
/* A batch of the rows in memory and the one after it. */
static void list_memory(const operands *o, size_t first, dp_row rows[2 * BATCH])
{
    for (size_t i = 0; i < 2 * BATCH; i++)
        rows[i] = dp_row_at((const uint16_t *)o->memory + (first + i) % MEMORY_ROWS * DIM);
}
CASE(key_logits_bf16_memory)
{
    dp_row rows[2 * BATCH];
    for (size_t i = 0; i < MEMORY_ROWS; i += BATCH) {
        list_memory(o, i, rows);
        k->key_logits[DP_BF16](o->q, HEADS, DIM, rows, BATCH, BATCH, 0.1f, o->out, BATCH);
    }
}
CASE(weighted_values_bf16) { k->weighted_values[DP_BF16](o->x, ROWS, HEADS, o->row, ROWS, 0, DIM, o->out); }
CASE(weighted_values_f16) { k->weighted_values[DP_F16](o->x, ROWS, HEADS, o->row, ROWS, 0, DIM, o->out); }
CASE(weighted_values_int8) { k->weighted_values[DP_INT8](o->x, ROWS, HEADS, o->row, ROWS, 0, DIM, o->out); }
CASE(weighted_values_f32) { k->weighted_values[DP_F32](o->x, TILE, HEADS, o->tile_row, TILE, 0, DIM, o->out); }
CASE(weighted_values_bf16_memory)
{
    dp_row rows[2 * BATCH];
    for (size_t i = 0; i < MEMORY_ROWS; i += BATCH) {
        list_memory(o, i, rows);
        k->weighted_values[DP_BF16](o->x, BATCH, HEADS, rows, BATCH, BATCH, DIM, o->out);
    }
}
/* Clusters of a usual size, of a usual beginning. */
CASE(code_logits)
{
    const dp_code_queries q = {.heads = HEADS, .d = DIM, .q = (const int8_t *)o->flags, .sum_of_q = o->sums, .factor = o->x};
    for (size_t i = 0; i < CLUSTERS * CLUSTER; i += CLUSTER)
        k->code_logits(&q, &(dp_code_tokens){(const uint8_t *)o->rows + i * DIM / 2, o->flags, 100u << 23, 2, CLUSTER, NULL, 0},
                       o->out, CLUSTER);
}
CASE(signs_exceed)
{
    const dp_sign_queries q = {.heads = HEADS, .d = DIM, .table = o->flags, .centre = o->ones, .factor = o->ones, .limit = o->ones};
    const size_t bytes = (CLUSTER + DP_SIGN_GROUP - 1) / DP_SIGN_GROUP * 2 * DIM;
    for (size_t i = 0; i < CLUSTERS; i++)
        o->sink = (float)k->signs_exceed(
            &q, &(dp_sign_tokens){(const uint8_t *)o->rows + i * bytes, o->flags, 100u << 23, CLUSTER, NULL, 0}, o->marks);
}
CASE(split_masses)
{
    for (size_t i = 0; i < CLUSTERS * CLUSTER; i += CLUSTER)
        k->split_masses(o->y, CLUSTER, HEADS, CLUSTER, o->ones, o->x, o->flags, o->out);
}
CASE(max) { o->sink = k->max(o->x, VALUES); }
CASE(exp_sum) { o->sink = k->exp_sum(o->y, VALUES, 1); }
CASE(soft_cap) { k->soft_cap(o->y, VALUES, 0, 50); }
CASE(cluster_logits) { o->sink = k->cluster_logits(o->y, o->sizes, o->spreads, o->limits, VALUES, 0, 0.5f, 1, o->y); }
CASE(cluster_mass) { o->sink = k->cluster_mass(o->x, o->sizes, o->spreads, VALUES, 2, 1, o->y, o->out); }
CASE(keep_clusters) { k->keep_clusters(o->x, o->spread, VALUES, 0.5f, 1, o->y, o->flags); }
CASE(rank_clusters) { k->rank_clusters(o->x, o->sizes, VALUES, 1, 0.1f, 8, o->y); }
CASE(mark_ranked) { k->mark_ranked(o->x, o->sizes, VALUES, 0.5f, 3, 4, o->flags); }
CASE(mark_in_reach) { k->mark_in_reach(o->x, o->spread, o->spreads, VALUES, 0.5f, 1, 1, 0.5f, 16, o->flags); }
CASE(list_flagged) { o->sink = (float)k->list_flagged(o->flags, VALUES, 3, 1, o->indices); }
CASE(mean_weights)
{
    float sums[2] = {0};
    k->mean_weights(o->x, o->indices, VALUES / 4, o->spread, o->spread, o->y, sums);
}
CASE(sum_at_least) { o->sink = k->sum_at_least(o->x, o->spread, VALUES, 0.5f); }
CASE(list_at_least) { o->sink = (float)k->list_at_least(o->x, NULL, VALUES, 0.5f, o->out, NULL); }
CASE(nearest)
{
    float best;
    o->sink = (float)k->nearest(o->x, o->spread, VALUES, &best);
}
CASE(axpy) { k->axpy(o->y, o->x, 1e-30f, VALUES); }
CASE(scale) { k->scale(o->y, 1, VALUES); }
CASE(dot) { o->sink = k->dot(o->x, o->spread, VALUES); }
CASE(transpose) { k->transpose(o->tile_c, TILE, o->tile_a, TILE, TILE, TILE); }
CASE(matmul) { k->matmul(o->tile_a, TILE, o->tile_b, TILE, o->tile_c, TILE, TILE, TILE, TILE, 0); }

#define STREAM(name, bytes_per_value) {#name, run_##name, (bytes_per_value) * (double)VALUES, 0}
#define ROW_CASE(name, rows, element) {#name, run_##name, (double)(rows) * DIM * (element), 0}

static const bench_case cases[] = {
    STREAM(f32_to_bf16, 6),
    STREAM(f32_to_f16, 6),
    STREAM(bf16_to_f32, 6),
    STREAM(f16_to_f32, 6),
    ROW_CASE(score_panels, PANELS * DP_PANEL, 1),
    ROW_CASE(score_panels_memory, MEMORY_ROWS, 1),
    ROW_CASE(key_logits_bf16, ROWS, 2),
    ROW_CASE(key_logits_f16, ROWS, 2),
    ROW_CASE(key_logits_int8, ROWS, 1),
    ROW_CASE(key_logits_f32, TILE, 4),
    ROW_CASE(key_logits_bf16_memory, MEMORY_ROWS, 2),
    ROW_CASE(weighted_values_bf16, ROWS, 2),
    ROW_CASE(weighted_values_f16, ROWS, 2),
    ROW_CASE(weighted_values_int8, ROWS, 1),
    ROW_CASE(weighted_values_f32, TILE, 4),
    ROW_CASE(weighted_values_bf16_memory, MEMORY_ROWS, 2),
    ROW_CASE(code_logits, CLUSTERS * CLUSTER, 0.5),
    ROW_CASE(signs_exceed, CLUSTERS * CLUSTER, 0.125),
    {"split_masses", run_split_masses, CLUSTERS * CLUSTER * HEADS * 8, 0},
    STREAM(max, 4),
    STREAM(exp_sum, 8),
    STREAM(soft_cap, 8),
    STREAM(cluster_logits, 14),
    STREAM(cluster_mass, 16),
    STREAM(keep_clusters, 18),
    STREAM(rank_clusters, 14),
    STREAM(mark_ranked, 8),
    STREAM(mark_in_reach, 12),
    STREAM(list_flagged, 1),
    {"mean_weights", run_mean_weights, VALUES / 4 * 18.0, 0},
    STREAM(sum_at_least, 8),
    STREAM(list_at_least, 4),
    STREAM(nearest, 8),
    STREAM(axpy, 12),
    STREAM(scale, 8),
    STREAM(dot, 8),
    {"transpose", run_transpose, 8.0 * TILE * TILE, 0},
    {"matmul", run_matmul, 12.0 * TILE * TILE, 2.0 * TILE * TILE * TILE},
};
enum { N_CASES = sizeof(cases) / sizeof(cases[0]) };

/* ---- Timing ---------------------------------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of one run. */
static double time_case(const bench_case *c, const dp_kernels *k, operands *o)
{
    double seconds[PASSES];
    size_t repeats = 1;
    c->run(k, o);
    for (;;) { /* as many as fill a pass */
        const double start = now();
        for (size_t i = 0; i < repeats; i++)
            c->run(k, o);
        const double elapsed = now() - start;
        if (elapsed >= pass_seconds / 2)
            break;
        repeats *= 2;
    }
    for (int pass = 0; pass < PASSES; pass++) {
        const double start = now();
        for (size_t i = 0; i < repeats; i++)
            c->run(k, o);
        seconds[pass] = (now() - start) / (double)repeats;
    }
    qsort(seconds, PASSES, sizeof(seconds[0]), compare_doubles);
    return seconds[PASSES / 2];
}

static void *take(size_t bytes)
{
    const size_t page = bytes < HUGE_PAGE ? 4096 : HUGE_PAGE; /* large ones as the library's arenas have them */
    void *const memory = aligned_alloc(page, (bytes + page - 1) / page * page);
    if (memory && page == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
    if (!memory) {
        fputs("bench_kernels: out of memory\n", stderr);
        exit(1);
    }
    memset(memory, 0, bytes);
    return memory;
}

static float *take_floats(size_t n, uint64_t seed, float low, float high)
{
    float *const x = take(n * sizeof(*x));
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x[i] = low + (high - low) * (float)(seed >> 40) * 0x1p-24f;
    }
    return x;
}

static uint16_t *take_bf16(const dp_kernels *k, size_t n, uint64_t seed, float low, float high)
{
    float *const x = take_floats(n, seed, low, high);
    uint16_t *const bits = take(n * sizeof(*bits));
    k->from_f32[DP_BF16](bits, x, n);
    free(x);
    return bits;
}

static operands create_operands(const dp_kernels *k)
{
    operands o = {0};
    o.q = take_floats(HEADS * DIM, 1, -1, 1);
    o.out = take_floats(VALUES, 2, 0, 1);
    o.x = take_floats(VALUES, 3, 0, 1);
    o.y = take_floats(VALUES, 4, 0, 1);
    o.sizes = take_bf16(k, VALUES, 5, 1, 32);
    o.spreads = take_bf16(k, VALUES, 6, 0, 1);
    o.limits = take_bf16(k, VALUES, 7, 1, 3);
    o.spread = take_floats(VALUES, 6, 0, 1);
    o.tile_a = take_floats(TILE * TILE, 8, -1, 1);
    o.tile_b = take_floats(TILE * TILE, 9, -1, 1);
    o.tile_c = take_floats(TILE * TILE, 10, -1, 1);
    o.flags = take(VALUES);
    o.marks = take(VALUES);
    o.indices = take((VALUES + DP_LIST_SLACK) * sizeof *o.indices);
    o.sums = take(HEADS * sizeof(*o.sums));
    o.ones = take_floats(HEADS, 9, 1, 1);
    o.rows = take(ROWS * DIM * sizeof(uint16_t));
    o.memory = take((size_t)MEMORY_ROWS * DIM * sizeof(uint16_t));
    o.row = take(ROWS * sizeof(*o.row));
    for (size_t i = 0; i < ROWS; i++)
        o.row[i] = dp_row_at((const uint16_t *)o.rows + i * 197 % ROWS * DIM);
    o.tile_row = take(TILE * sizeof(*o.tile_row));
    for (size_t i = 0; i < TILE; i++)
        o.tile_row[i] = dp_row_at(o.tile_a + i * TILE);
    for (size_t i = 0; i < ROWS * DIM; i += VALUES)
        k->from_f32[DP_BF16]((uint16_t *)o.rows + i, o.x, VALUES);
    for (size_t i = 0; i < (size_t)MEMORY_ROWS * DIM; i += VALUES)
        k->from_f32[DP_BF16]((uint16_t *)o.memory + i, o.x, VALUES);
    return o;
}

int main(int argc, char **argv)
{
    static const char *const isa_names[DP_ISA_COUNT] = {"auto", "scalar", "avx2", "avx512", "neon"};
    const bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    const char *const filter = argc > 1 + json ? argv[1 + json] : "";
    dp_kernels tables[DP_ISA_COUNT];
    bool available[DP_ISA_COUNT] = {false};
    for (int isa = DP_ISA_SCALAR; isa < DP_ISA_COUNT; isa++)
        available[isa] = dp_kernels_init(&tables[isa], (dp_isa)isa, dp_cpu_features()) == 0;
    operands o = create_operands(&tables[DP_ISA_SCALAR]);

    if (json)
        printf("{\"kernels\": [");
    else
        printf("%-30s %9s", "kernel, one thread", "");
    for (int isa = DP_ISA_SCALAR; !json && isa < DP_ISA_COUNT; isa++)
        if (available[isa])
            printf(" %9s", isa_names[isa]);
    const char *separator = "";
    for (size_t i = 0; i < N_CASES; i++) {
        const bench_case *const c = &cases[i];
        const char *const unit = c->flops > 0 ? "GFLOP/s" : "GB/s";
        if (!strstr(c->name, filter))
            continue;
        if (json)
            printf("%s\n  {\"name\": \"%s\", \"unit\": \"%s\"", separator, c->name, unit);
        else
            printf("\n%-30s %9s", c->name, unit);
        separator = ",";
        for (int isa = DP_ISA_SCALAR; isa < DP_ISA_COUNT; isa++) {
            if (!available[isa])
                continue;
            const double rate = (c->flops > 0 ? c->flops : c->bytes) / time_case(c, &tables[isa], &o) * 1e-9;
            if (json)
                printf(", \"%s\": %.3f", isa_names[isa], rate);
            else
                printf(" %9.2f", rate);
        }
        if (json)
            putchar('}');
        fflush(stdout);
    }
    puts(json ? "\n]}" : "");
    return 0;
}
