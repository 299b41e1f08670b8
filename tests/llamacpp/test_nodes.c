/* Single nodes of attention, of shapes that the model of the other tests does not have: the plugin's result against double
 * precision, what it must decline, and what it must leave to the CPU backend to the last bit. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../suite.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "llamacpp/plugin.h"

enum { CELLS = 3072, TOKENS = 2800, ROWS = 3 };

typedef struct shape {
    int heads, kv_heads, key_dim, value_dim;
    bool sinks;
    float softcap;
} shape;

/* A cache of one layer, and the graph of one step over it. */
typedef struct step {
    shape shape;
    int n_rows;
    enum ggml_type type;
    float max_bias;
    struct ggml_context *cache_ctx, *ctx;
    ggml_backend_buffer_t cache_buffer, buffer;
    struct ggml_tensor *k_cache, *v_cache, *k_new, *v_new, *cells, *q, *mask, *sinks, *out;
    struct ggml_cgraph *graph;
} step;

static const plugin_counters *counters;
static ggml_backend_t plugin_backend, cpu_backend;

static float random_float(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1 << 23) - 1.0f;
}

static void set_random(struct ggml_tensor *t, uint32_t seed, float scale)
{
    const size_t n = (size_t)ggml_nelements(t);
    float *const values = malloc(n * sizeof *values);
    for (size_t i = 0; i < n; i++) values[i] = scale * random_float(&seed);
    if (t->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(t, values, 0, n * sizeof *values);
    } else {
        ggml_fp16_t *const halves = malloc(n * sizeof *halves);
        ggml_fp32_to_fp16_row(values, halves, (int64_t)n);
        ggml_backend_tensor_set(t, halves, 0, n * sizeof *halves);
        free(halves);
    }
    free(values);
}

static struct ggml_context *new_context(void)
{
    return ggml_init(
        (struct ggml_init_params){.mem_size = 64 * ggml_tensor_overhead() + ggml_graph_overhead(), .no_alloc = true});
}

/* Tokens of a cache tensor as attention sees them. */
static struct ggml_tensor *view(struct ggml_context *ctx, struct ggml_tensor *cache, int dim, int kv_heads)
{
    struct ggml_tensor *const tokens = ggml_view_4d(ctx, cache, dim, kv_heads, CELLS, 1,
                                                    ggml_row_size(cache->type, dim), cache->nb[1], cache->nb[2], 0);
    return ggml_permute(ctx, tokens, 0, 2, 1, 3);
}

static void open_cache(step *s)
{
    s->cache_ctx = new_context();
    s->k_cache = ggml_new_tensor_3d(s->cache_ctx, s->type, s->shape.key_dim * s->shape.kv_heads, CELLS, 1);
    s->v_cache = ggml_new_tensor_3d(s->cache_ctx, s->type, s->shape.value_dim * s->shape.kv_heads, CELLS, 1);
    ggml_set_name(s->k_cache, "cache_k_l0");
    ggml_set_name(s->v_cache, "cache_v_l0");
    s->cache_buffer = ggml_backend_alloc_ctx_tensors_from_buft(s->cache_ctx, ggml_backend_cpu_buffer_type());
    set_random(s->k_cache, 1, 2);
    set_random(s->v_cache, 2, 1);
}

static void open_step(step *s, int n_rows)
{
    const shape *const p = &s->shape;
    s->n_rows = n_rows;
    s->ctx = new_context();
    s->k_new = ggml_new_tensor_2d(s->ctx, GGML_TYPE_F32, p->key_dim * p->kv_heads, n_rows);
    s->v_new = ggml_new_tensor_2d(s->ctx, GGML_TYPE_F32, p->value_dim * p->kv_heads, n_rows);
    s->cells = ggml_new_tensor_1d(s->ctx, GGML_TYPE_I64, n_rows);
    s->q = ggml_new_tensor_4d(s->ctx, GGML_TYPE_F32, p->key_dim, n_rows, p->heads, 1);
    s->mask = ggml_new_tensor_4d(s->ctx, GGML_TYPE_F16, CELLS, n_rows, 1, 1);
    s->sinks = ggml_new_tensor_1d(s->ctx, GGML_TYPE_F32, p->heads);
    s->graph = ggml_new_graph(s->ctx);
    ggml_build_forward_expand(s->graph, ggml_set_rows(s->ctx, s->k_cache, s->k_new, s->cells));
    ggml_build_forward_expand(s->graph, ggml_set_rows(s->ctx, s->v_cache, s->v_new, s->cells));
    s->out = ggml_flash_attn_ext(s->ctx, s->q, view(s->ctx, s->k_cache, p->key_dim, p->kv_heads),
                                 view(s->ctx, s->v_cache, p->value_dim, p->kv_heads), s->mask,
                                 1 / sqrtf((float)p->key_dim), s->max_bias, p->softcap);
    if (p->sinks) ggml_flash_attn_ext_add_sinks(s->out, s->sinks);
    ggml_build_forward_expand(s->graph, s->out);
    s->buffer = ggml_backend_alloc_ctx_tensors_from_buft(s->ctx, ggml_backend_cpu_buffer_type());
}

static void close_step(step *s)
{
    ggml_backend_buffer_free(s->buffer);
    ggml_free(s->ctx);
}

static void close_cache(step *s)
{
    ggml_backend_buffer_free(s->cache_buffer);
    ggml_free(s->cache_ctx);
}

/* Tokens first .. first + n_rows - 1 of a sequence whose tokens lie in the cells of their numbers. */
static void fill(step *s, int first)
{
    set_random(s->k_new, 3u + (uint32_t)first, 2);
    set_random(s->v_new, 4u + (uint32_t)first, 1);
    set_random(s->q, 5u + (uint32_t)first, 6); /* a few tokens have most of the weight */
    set_random(s->sinks, 6, 8);
    ggml_fp16_t *const mask = malloc(ggml_nbytes(s->mask));
    for (int r = 0; r < s->n_rows; r++) {
        const int64_t cell = first + r;
        ggml_backend_tensor_set(s->cells, &cell, (size_t)r * sizeof cell, sizeof cell);
        for (int c = 0; c < CELLS; c++) mask[r * CELLS + c] = ggml_fp32_to_fp16(c <= cell ? 0 : -INFINITY);
    }
    ggml_backend_tensor_set(s->mask, mask, 0, ggml_nbytes(s->mask));
    free(mask);
}

static float half_at(const struct ggml_tensor *t, int cell, int i)
{
    return ggml_fp16_to_fp32(((const ggml_fp16_t *)((const char *)t->data + (size_t)cell * t->nb[1]))[i]);
}

/* One head of one row in double precision. */
static void exact_head(const step *s, int first, int row, int head, double *out)
{
    const shape *const p = &s->shape;
    const int kv_head = head / (p->heads / p->kv_heads), n = first + row + 1;
    const float *const q =
        (const float *)s->q->data + ((size_t)head * (size_t)s->n_rows + (size_t)row) * (size_t)p->key_dim;
    double *const weight = malloc((size_t)n * sizeof *weight);
    double largest = p->sinks ? (double)((const float *)s->sinks->data)[head] : -INFINITY, sum;
    for (int t = 0; t < n; t++) {
        weight[t] = 0;
        for (int i = 0; i < p->key_dim; i++)
            weight[t] += (double)q[i] * (double)half_at(s->k_cache, t, kv_head * p->key_dim + i);
        weight[t] /= sqrt(p->key_dim);
        if (p->softcap > 0) weight[t] = (double)p->softcap * tanh(weight[t] / (double)p->softcap);
        if (weight[t] > largest) largest = weight[t];
    }
    sum = p->sinks ? exp((double)((const float *)s->sinks->data)[head] - largest) : 0;
    for (int t = 0; t < n; t++) sum += weight[t] = exp(weight[t] - largest);
    for (int i = 0; i < p->value_dim; i++) {
        out[i] = 0;
        for (int t = 0; t < n; t++)
            out[i] += weight[t] / sum * (double)half_at(s->v_cache, t, kv_head * p->value_dim + i);
    }
    free(weight);
}

/* Error of the node's output, in the root mean square, as a share of the output. */
static double error_of(const step *s, int first)
{
    double difference = 0, all = 0, exact[512];
    for (int r = 0; r < s->n_rows; r++)
        for (int h = 0; h < s->shape.heads; h++) {
            exact_head(s, first, r, h, exact);
            for (int i = 0; i < s->shape.value_dim; i++) {
                const float got =
                    ((const float *)
                         s->out->data)[((size_t)r * (size_t)s->shape.heads + (size_t)h) * (size_t)s->shape.value_dim +
                                       (size_t)i];
                difference += ((double)got - exact[i]) * ((double)got - exact[i]);
                all += exact[i] * exact[i];
            }
        }
    return sqrt(difference / all);
}

/* Loads the plugin; it claims attention once it was told the number of threads. */
static void load(const char *epsilon)
{
    setenv("DOUBLEP_EPSILON", epsilon, 1);
    const ggml_backend_reg_t reg = ggml_backend_load(PLUGIN_PATH);
    ck_assert_ptr_nonnull(reg);
    const plugin_counters *(*get)(void);
    *(void **)&get = ggml_backend_reg_get_proc_address(reg, "doublep_counters");
    counters = get();
    plugin_backend = ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), NULL);
    cpu_backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL);
    ck_assert(plugin_backend && cpu_backend);
    ggml_backend_set_n_threads_t set;
    *(void **)&set = ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    set(plugin_backend, 2);
    *(void **)&set = ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu_backend)), "ggml_backend_set_n_threads");
    set(cpu_backend, 2); /* its bits depend on it */
}

static bool supported(const step *s)
{
    return ggml_backend_supports_op(plugin_backend, s->out);
}

static const shape shapes[] = {
    {8, 2, 64, 64, false, 0},  {8, 2, 64, 64, true, 0},   {4, 4, 512, 512, false, 0},   {8, 1, 192, 128, false, 0},
    {4, 2, 128, 256, true, 0}, {16, 2, 80, 80, false, 0}, {7, 1, 64, 64, false, 0},     {3, 3, 8, 8, true, 0},
    {8, 4, 64, 64, false, 20}, {8, 2, 64, 64, true, 16},  {4, 2, 256, 256, false, 30},
};

/* One token, and then several at once as a draft has them. */
static void run_shape(const shape *shape, double allowed)
{
    step s = {.shape = *shape, .type = GGML_TYPE_F16};
    open_cache(&s);
    int at = TOKENS;
    for (int n_rows = 1; n_rows <= ROWS; at += n_rows, n_rows += ROWS - 1) {
        open_step(&s, n_rows);
        fill(&s, at);
        ck_assert(supported(&s));
        const uint64_t passed = counters->passed;
        ck_assert_int_eq(ggml_backend_graph_compute(plugin_backend, s.graph), GGML_STATUS_SUCCESS);
        ck_assert_uint_eq(counters->passed, passed);
        const double error = error_of(&s, at);
        ck_assert_msg(error <= allowed, "%d:%d heads of %d and %d, %d rows: error %g", shape->heads, shape->kv_heads,
                      shape->key_dim, shape->value_dim, n_rows, error);
        close_step(&s);
    }
    close_cache(&s);
}

START_TEST(dense)
{
    load("0");
    run_shape(&shapes[_i], 2e-4);
    ck_assert(counters->dense > 0 && counters->sparse == 0);
}
END_TEST

START_TEST(sparse)
{
    load("0.05");
    run_shape(&shapes[_i], 0.15);
    ck_assert_uint_gt(counters->sparse, 0);
}
END_TEST

START_TEST(declines)
{
    load("0");
    static const struct {
        shape shape;
        enum ggml_type type;
        float max_bias;
        bool claimed;
    } cases[] = {
        {{8, 2, 64, 64, false, 0}, GGML_TYPE_F16, 0, true},       {{8, 2, 64, 64, false, 0}, GGML_TYPE_F16, 8, false},
        {{8, 2, 64, 64, false, -30}, GGML_TYPE_F16, 0, false},    {{8, 2, 576, 512, false, 0}, GGML_TYPE_F16, 0, false},
        {{8, 2, 100, 100, false, 0}, GGML_TYPE_F16, 0, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        step s = {.shape = cases[i].shape, .type = cases[i].type, .max_bias = cases[i].max_bias};
        open_cache(&s);
        open_step(&s, 1);
        ck_assert_msg(supported(&s) == cases[i].claimed, "case %zu", i);
        close_step(&s);
        close_cache(&s);
    }
}
END_TEST

/* The CPU backend's caps, one after the other over the same cache. */
START_TEST(caps_as_the_cpu_does)
{
    load("0");
    static const float caps[] = {0, 30, 3};
    step s = {.shape = shapes[0], .type = GGML_TYPE_F16};
    float *outs[3];
    open_cache(&s);
    for (int i = 0; i < 3; i++) {
        s.shape.softcap = caps[i];
        open_step(&s, 1);
        fill(&s, TOKENS);
        ck_assert(supported(&s));
        const size_t n = (size_t)ggml_nelements(s.out);
        float *const expected = outs[i] = malloc(n * sizeof *expected), *const got = s.out->data;
        ck_assert_int_eq(ggml_backend_graph_compute(cpu_backend, s.graph), GGML_STATUS_SUCCESS);
        memcpy(expected, got, n * sizeof *expected);
        memset(got, 0, n * sizeof *got);
        ck_assert_int_eq(ggml_backend_graph_compute(plugin_backend, s.graph), GGML_STATUS_SUCCESS);
        ck_assert_uint_eq(counters->passed, 0);
        double difference = 0, all = 0, changed = 0;
        for (size_t j = 0; j < n; j++) {
            difference += pow((double)got[j] - (double)expected[j], 2);
            all += pow((double)expected[j], 2);
            changed += pow((double)expected[j] - (double)outs[0][j], 2);
        }
        ck_assert_double_lt(difference, 1e-4 * all); /* the CPU backend adds values up in f16 */
        ck_assert(i == 0 || changed > 1e-2 * all);
        close_step(&s);
    }
    for (int i = 0; i < 3; i++) free(outs[i]);
    close_cache(&s);
}
END_TEST

/* A mask that says more than seen and not seen. */
START_TEST(leaves_to_the_cpu)
{
    load("0");
    step s = {.shape = shapes[0], .type = GGML_TYPE_F16};
    open_cache(&s);
    open_step(&s, 1);
    fill(&s, TOKENS);
    const ggml_fp16_t bias = ggml_fp32_to_fp16(-1);
    ggml_backend_tensor_set(s.mask, &bias, 100 * sizeof bias, sizeof bias);
    ck_assert(supported(&s));
    const size_t size = ggml_nbytes(s.out);
    char *const expected = malloc(size);
    ck_assert_int_eq(ggml_backend_graph_compute(cpu_backend, s.graph), GGML_STATUS_SUCCESS);
    memcpy(expected, s.out->data, size);
    memset(s.out->data, 0, size);
    ck_assert_int_eq(ggml_backend_graph_compute(plugin_backend, s.graph), GGML_STATUS_SUCCESS);
    ck_assert_uint_eq(counters->passed, 1);
    ck_assert_mem_eq(s.out->data, expected, size);
    free(expected);
    close_step(&s);
    close_cache(&s);
}
END_TEST

int main(void)
{
    const int n = sizeof shapes / sizeof *shapes;
    ggml_backend_load_all_from_path(BACKENDS); /* those of a llama.cpp that loads them; others have theirs built in */
    Suite *const suite = suite_create("llamacpp-nodes");
    TCase *const tcase = tcase_create("nodes");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, dense, 0, n);
    tcase_add_loop_test(tcase, sparse, 0, n);
    tcase_add_test(tcase, declines);
    tcase_add_test(tcase, caps_as_the_cpu_does);
    tcase_add_test(tcase, leaves_to_the_cpu);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
