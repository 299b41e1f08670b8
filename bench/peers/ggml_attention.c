/* ggml_attention.c: the decode attention of ggml's CPU backend (FLASH_ATTN_EXT over an f16 cache), measured as
 * `doublep bench` measures ours: layers in turn, the caches flushed in between. Prints one JSON object.
 *
 *     ggml_attention QUERY_HEADS KV_HEADS DIM TOKENS THREADS STEPS
 *
 * Built by tools/bench against the headers and libraries of an installed ggml. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ggml-cpu.h>
#include <ggml.h>

enum { LAYERS = 2, FLUSH_BYTES = 96 << 20 };

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void fill_f16(struct ggml_tensor *t, uint32_t seed)
{
    ggml_fp16_t *const values = t->data;
    ggml_fp16_t table[4096];
    for (int i = 0; i < 4096; i++) {
        seed = seed * 1664525u + 1013904223u;
        table[i] = ggml_fp32_to_fp16((float)(seed >> 8) * 0x1p-23f - 1);
    }
    const int64_t n = ggml_nelements(t);
    for (int64_t i = 0; i < n; i++)
        values[i] = table[(i * 31 + i / 4096) % 4096];
}

static void flush_caches(const char *memory)
{
    static volatile unsigned sink;
    unsigned sum = 0;
    for (size_t i = 0; i < FLUSH_BYTES; i += 64)
        sum += (unsigned char)memory[i];
    sink = sum;
    (void)sink;
}

int main(int argc, char **argv)
{
    long a[6];
    for (int i = 0; i < 6; i++)
        if (argc != 7 || (a[i] = strtol(argv[i + 1], NULL, 10)) < 1) {
            fputs("usage: ggml_attention QUERY_HEADS KV_HEADS DIM TOKENS THREADS STEPS\n", stderr);
            return 2;
        }
    const int64_t heads = a[0], kv_heads = a[1], dim = a[2], tokens = a[3];
    const int threads = (int)a[4], steps = (int)a[5];
    const size_t cache_bytes = (size_t)(tokens * kv_heads * dim) * 2;
    const struct ggml_init_params parameters = {.mem_size = 2 * LAYERS * cache_bytes + (64u << 20)};
    struct ggml_context *const context = ggml_init(parameters);
    char *const flush = malloc(FLUSH_BYTES);
    double *const ms = calloc((size_t)steps, sizeof(*ms));
    if (!context || !flush || !ms) {
        fputs("ggml_attention: out of memory\n", stderr);
        return 1;
    }
    memset(flush, 1, FLUSH_BYTES);

    /* A cache as llama.cpp has it: a token's heads lie together. */
    struct ggml_cgraph *graphs[LAYERS];
    struct ggml_tensor *const q = ggml_new_tensor_3d(context, GGML_TYPE_F32, dim, 1, heads);
    struct ggml_tensor *const mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, tokens, 64);
    memset(mask->data, 0, ggml_nbytes(mask));
    for (int64_t i = 0; i < heads * dim; i++)
        ((float *)q->data)[i] = sinf((float)i);
    for (int l = 0; l < LAYERS; l++) {
        struct ggml_tensor *const kv[2] = {ggml_new_tensor_2d(context, GGML_TYPE_F16, dim * kv_heads, tokens),
                                           ggml_new_tensor_2d(context, GGML_TYPE_F16, dim * kv_heads, tokens)};
        struct ggml_tensor *views[2];
        for (int i = 0; i < 2; i++) {
            fill_f16(kv[i], (uint32_t)(2 * l + i));
            views[i] = ggml_view_3d(context, kv[i], dim, tokens, kv_heads, (size_t)(dim * kv_heads) * 2, (size_t)dim * 2, 0);
        }
        struct ggml_tensor *const out =
            ggml_flash_attn_ext(context, q, views[0], views[1], mask, 1 / sqrtf((float)dim), 0, 0);
        graphs[l] = ggml_new_graph(context);
        ggml_build_forward_expand(graphs[l], out);
    }
    struct ggml_threadpool_params pool_parameters = ggml_threadpool_params_default(threads);
    struct ggml_threadpool *const pool = ggml_threadpool_new(&pool_parameters);
    struct ggml_cplan plan = ggml_graph_plan(graphs[0], threads, pool);
    plan.work_data = plan.work_size ? malloc(plan.work_size) : NULL;
    for (int step = -LAYERS; step < steps; step++) { /* the first are for warming up */
        flush_caches(flush);
        const double start = now_ms();
        ggml_graph_compute(graphs[(step + LAYERS) % LAYERS], &plan);
        if (step >= 0)
            ms[step] = now_ms() - start;
    }
    qsort(ms, (size_t)steps, sizeof(*ms), compare_doubles);
    const double median = ms[steps / 2], bytes = 2 * (double)cache_bytes;
    const char *const isa = ggml_cpu_has_avx512() ? "AVX-512"
                            : ggml_cpu_has_avx2() ? "AVX2"
                            : ggml_cpu_has_neon() ? "NEON"
                                                  : "baseline";
    printf("{\"name\": \"ggml f16, %s build\", \"version\": \"%s\", \"ms_median\": %.4f, \"ms_p10\": %.4f, "
           "\"ms_p90\": %.4f, \"bytes\": %.0f, \"gbps\": %.3f}\n",
           isa, ggml_version(), median, ms[steps / 10], ms[steps * 9 / 10], bytes,
           bytes / median * 1e-6);
    return 0;
}
