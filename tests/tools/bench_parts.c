/* bench_parts.c: the parts of the benchmark: figures, made-up inputs, recordings and how they are tiled. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../suite.h"
#include "bench.h"
#include "scratch.h"
#include "trace.h"

START_TEST(spreads_are_between_the_sorted_values)
{
    double values[] = {4, 0, 10, 2, 8, 6, 1, 3, 5, 7, 9};
    const bench_spread s = bench_spread_of(values, 11);
    ck_assert_double_eq_tol(s.p10, 1, 1e-12);
    ck_assert_double_eq_tol(s.median, 5, 1e-12);
    ck_assert_double_eq_tol(s.p90, 9, 1e-12);
    double pair[] = {3, 1};
    ck_assert_double_eq_tol(bench_spread_of(pair, 2).median, 2, 1e-12);
    ck_assert_double_eq_tol(bench_spread_of(pair, 1).p90, 1, 1e-12);
}
END_TEST

START_TEST(gather_bandwidth_is_interpolated)
{
    const bench_machine machine = {.gather_gbps = {1, 2, 4, 8, 16}};
    ck_assert_double_eq_tol(bench_gather_gbps(&machine, 1), 1, 1e-9);
    ck_assert_double_eq_tol(bench_gather_gbps(&machine, 256), 1, 1e-9);
    ck_assert_double_eq_tol(bench_gather_gbps(&machine, 512), 1.5, 1e-9);
    ck_assert_double_eq_tol(bench_gather_gbps(&machine, 4096), 4, 1e-9);
    ck_assert_double_eq_tol(bench_gather_gbps(&machine, 1 << 20), 16, 1e-9);
}
END_TEST

START_TEST(counters_count)
{
    counters c;
    double before[COUNTERS_MAX], after[COUNTERS_MAX], sum = 0;
    volatile double work = 1;
    counters_open(&c);
    counters_read(&c, before);
    for (int i = 0; i < 1000000; i++)
        work = work * 1.0000001;
    counters_read(&c, after);
    ck_assert(c.kind[0] != '\0');
    for (size_t i = 0; i < c.n; i++) {
        ck_assert_double_ge(after[i], before[i]);
        sum += after[i] - before[i];
    }
    ck_assert(c.n == 0 || sum > 0);
    counters_close(&c);
}
END_TEST

/* ---- Made-up inputs ------------------------------------------------------------------------------------------------ */

enum { N = 3000, LAYERS = 2 };
static const bench_shape shape = {"test", 4, 2, 32};

START_TEST(made_up_rows_do_not_depend_on_how_they_are_asked_for)
{
    const size_t width = (size_t)shape.n_kv_heads * shape.dim;
    bench_source *const a = bench_synthetic_create(&shape, LAYERS, N), *const b = bench_synthetic_create(&shape, LAYERS, N);
    float *const k = malloc(N * width * sizeof(*k)), *const v = malloc(N * width * sizeof(*v));
    float *const k1 = malloc(width * sizeof(*k)), *const v1 = malloc(width * sizeof(*v));
    ck_assert(a && b && k && v && k1 && v1);
    ck_assert(a->synthetic && strstr(a->label, "synthetic"));
    a->rows(a, 1, 0, N, k, v);
    for (size_t t = 0; t < N; t += 37) {
        b->rows(b, 1, t, 1, k1, v1);
        assert_quietly(memcmp(k1, k + t * width, width * sizeof(*k)) == 0);
        assert_quietly(memcmp(v1, v + t * width, width * sizeof(*v)) == 0);
    }
    for (size_t i = 0; i < N * width; i++)
        assert_quietly(isfinite(k[i]) && isfinite(v[i]));
    b->rows(b, 0, 100, 1, k1, v1);
    ck_assert(memcmp(k1, k + 100 * width, width * sizeof(*k)) != 0); /* another layer */
    float q[2][4 * 32];
    for (uint64_t step = 0; step < 5; step++) {
        a->query(a, 1, step, N + step, q[0]);
        b->query(b, 1, step, N + step, q[1]);
        ck_assert(memcmp(q[0], q[1], sizeof(q[0])) == 0);
    }
    a->query(a, 1, 5, N + 5, q[0]);
    ck_assert(memcmp(q[0], q[1], sizeof(q[0])) != 0);
    a->destroy(a);
    b->destroy(b);
    free(k);
    free(v);
    free(k1);
    free(v1);
}
END_TEST

/* Attention that is known: one key stands out by so much that it has nearly all the mass, or none does. */
START_TEST(the_spread_of_attention_is_counted)
{
    enum { TOKENS = 1000, DIM = 16 };
    const bench_shape one = {"one", 2, 1, DIM};
    dp_runtime *runtime;
    dp_sequence *sequence;
    dp_sequence_config config;
    dp_sequence_config_init(&config);
    config.n_layers = 1;
    config.n_query_heads = 2;
    config.n_kv_heads = 1;
    config.key_dim = config.value_dim = DIM;
    config.type = DP_F32;
    ck_assert(dp_runtime_create(NULL, &runtime) == DP_OK && dp_sequence_create(runtime, &config, &sequence) == DP_OK);
    static float k[TOKENS * DIM], v[TOKENS * DIM];
    k[500 * DIM] = 100;
    ck_assert(dp_append(sequence, 0, TOKENS, k, 0, v, 0) == DP_OK);
    float q[2 * DIM] = {0};
    q[0] = 10;            /* head 0: the key 500; head 1: all alike */
    bench_attention attention;
    ck_assert(bench_look_attention(sequence, 0, &one, q, 4, 50, &attention));
    ck_assert_uint_eq(attention.n_heads, 2);
    ck_assert_double_eq_tol(attention.tokens_90[0], 1, 1e-9);
    ck_assert_double_eq_tol(attention.tokens_90[1], 900, 1);
    ck_assert_double_eq_tol(attention.sink_share, 0.5 * 4 / TOKENS, 1e-6);
    ck_assert_double_eq_tol(attention.window_share, 0.5 * 50 / TOKENS, 1e-6);
    dp_sequence_free(sequence);
    dp_runtime_free(runtime);
}
END_TEST

/* ---- Recordings ------------------------------------------------------------------------------------------------------ */

enum { PROMPT = 300, STEPS = 3, Q_HEADS = 4, KV_HEADS = 2, DIM = 8, MODEL_LAYERS = 3 };

/* What is recorded says where it comes from; bf16 holds these numbers. */
static float mark(int document, uint32_t layer, uint32_t head, int is_value)
{
    return (float)(document * 64 + (int)layer * 16 + (int)head * 4 + is_value);
}

static dp_status append_and_attend(trace_writer *w, dp_sequence *s, int document, uint32_t layer, uint64_t position,
                                   size_t n, bool prefill)
{
    enum { STRIDE = 2 * KV_HEADS * DIM };
    static float kv[PROMPT * STRIDE], q[PROMPT * Q_HEADS * DIM], out[PROMPT * Q_HEADS * DIM];
    for (size_t t = 0; t < n; t++)
        for (uint32_t h = 0; h < KV_HEADS; h++)
            for (size_t j = 0; j < DIM; j++) {
                kv[t * STRIDE + h * DIM + j] = j == 0 ? (float)((position + t) % 128) : mark(document, layer, h, 0);
                kv[t * STRIDE + (KV_HEADS + h) * DIM + j] = mark(document, layer, h, 1);
            }
    for (size_t i = 0; i < n * Q_HEADS * DIM; i++)
        q[i] = (float)position + (float)(i / DIM % Q_HEADS) * 0.25f;
    const float *const k = kv, *const v = kv + KV_HEADS * DIM;
    const dp_status status = dp_append(s, layer, n, k, STRIDE, v, STRIDE);
    const model_attention_call call = {.sequence = s, .layer = layer, .prefill = prefill, .position = position,
                                       .n_tokens = n, .n_queries = prefill ? 0 : n, .q = q, .q_stride = Q_HEADS * DIM,
                                       .k = k, .v = v, .kv_stride = STRIDE, .out = out};
    return status == DP_OK ? trace_writer_attend(w, &call) : status;
}

static void record(const char *path, int document)
{
    const model_shape model = {.n_layers = MODEL_LAYERS, .n_heads = Q_HEADS, .n_kv_heads = KV_HEADS, .key_dim = DIM,
                               .value_dim = DIM};
    const bool layers[MODEL_LAYERS] = {true, false, true};
    char error[256] = "";
    dp_runtime *runtime;
    dp_sequence *sequence;
    dp_sequence_config config;
    dp_sequence_config_init(&config);
    config.n_layers = MODEL_LAYERS;
    config.n_query_heads = Q_HEADS;
    config.n_kv_heads = KV_HEADS;
    config.key_dim = config.value_dim = DIM;
    ck_assert(dp_runtime_create(NULL, &runtime) == DP_OK && dp_sequence_create(runtime, &config, &sequence) == DP_OK);
    trace_writer *const w = trace_writer_create(path, &model, layers, error, sizeof(error));
    ck_assert_msg(w != NULL, "%s", error);
    for (uint32_t l = 0; l < MODEL_LAYERS; l++) {
        ck_assert(append_and_attend(w, sequence, document, l, 0, 100, true) == DP_OK);
        ck_assert(append_and_attend(w, sequence, document, l, 100, PROMPT - 100, true) == DP_OK);
    }
    for (uint64_t step = 0; step < STEPS; step++)
        for (uint32_t l = 0; l < MODEL_LAYERS; l++)
            ck_assert(append_and_attend(w, sequence, document, l, PROMPT + step, 1, false) == DP_OK);
    ck_assert(trace_writer_finish(w, error, sizeof(error)));
    dp_sequence_free(sequence);
    dp_runtime_free(runtime);
}

/* Key element 0 is the token's number modulo 128; the others say document, layer and head. */
static void check_row(bench_source *s, uint32_t layer, uint64_t token, uint32_t head, int document, uint32_t from_layer,
                      uint32_t from_head, uint64_t from_token)
{
    float k[KV_HEADS * DIM], v[KV_HEADS * DIM];
    s->rows(s, layer, token, 1, k, v);
    ck_assert_float_eq(k[head * DIM], (float)(from_token % 128));
    ck_assert_float_eq(k[head * DIM + 1], mark(document, from_layer, from_head, 0));
    ck_assert_float_eq(v[head * DIM + 5], mark(document, from_layer, from_head, 1));
}

START_TEST(recordings_come_back_tiled)
{
    const char *const paths[] = {scratch_path("0.trace"), scratch_path("1.trace")};
    char error[256] = "";
    bench_shape found;
    uint64_t n_tokens;
    record(paths[0], 0);
    record(paths[1], 1);
    ck_assert(bench_trace_shape(paths[0], &found, &n_tokens, error, sizeof(error)));
    ck_assert(found.n_query_heads == Q_HEADS && found.n_kv_heads == KV_HEADS && found.dim == DIM && n_tokens == PROMPT);

    /* Four layers of two heads from two recorded layers (0 and 2) of two documents: layers 2 and 3 end with document 1. */
    bench_source *const s = bench_trace_create(paths, 2, &found, 4, 2 * PROMPT, error, sizeof(error));
    ck_assert_msg(s != NULL, "%s", error);
    ck_assert(!s->synthetic && strstr(s->label, "tiled"));
    check_row(s, 0, 0, 0, 1, 0, 0, 0);
    check_row(s, 0, PROMPT - 1, 1, 1, 0, 1, PROMPT - 1);
    check_row(s, 0, PROMPT, 0, 0, 0, 0, 0);
    check_row(s, 1, 2 * PROMPT - 1, 1, 0, 2, 1, PROMPT - 1);
    check_row(s, 3, PROMPT + 7, 0, 1, 2, 0, 7);
    check_row(s, 3, 7, 0, 0, 2, 0, 7);
    check_row(s, 0, 2 * PROMPT + 1, 0, 0, 0, 0, PROMPT + 1);                 /* decoded tokens follow */
    check_row(s, 0, 2 * PROMPT + STEPS + 2, 0, 0, 0, 0, PROMPT + 2);         /* over and over */
    float q[Q_HEADS * DIM];
    s->query(s, 0, STEPS + 1, 0, q);
    ck_assert_float_eq(q[0], PROMPT + 1);
    ck_assert_float_eq(q[3 * DIM], PROMPT + 1 + 0.75f);
    s->destroy(s);

    /* A shorter context keeps the sinks and the end. */
    bench_source *const cut = bench_trace_create(paths, 2, &found, 1, PROMPT + 50, error, sizeof(error));
    ck_assert_msg(cut != NULL, "%s", error);
    check_row(cut, 0, 3, 0, 1, 0, 0, 3);
    check_row(cut, 0, 4, 0, 1, 0, 0, PROMPT - 50 + 4);
    check_row(cut, 0, 49, 0, 1, 0, 0, PROMPT - 1);
    check_row(cut, 0, 50, 0, 0, 0, 0, 0);
    cut->destroy(cut);

    ck_assert_ptr_null(bench_trace_create(paths, 2, &found, 1, 2 * PROMPT + 1, error, sizeof(error)));
    ck_assert(strstr(error, "fewer than the context"));
}
END_TEST

START_TEST(damaged_recordings_are_refused)
{
    const char *const path = scratch_path("good.trace"), *const bad = scratch_path("bad.trace");
    char error[256];
    size_t n;
    record(path, 0);
    char *const content = scratch_read(path, &n);
    for (size_t length = 0; length < n; length += n / 97 + 1) {
        scratch_write(bad, content, length);
        trace *const t = trace_open(bad, error, sizeof(error));
        if (t)
            ck_abort_msg("%zu of %zu bytes were taken for a recording", length, n);
    }
    uint64_t seed = 1;
    for (int i = 0; i < 2000; i++) { /* nothing but a message may come of wrong numbers in headers and records */
        char *const copy = malloc(n);
        memcpy(copy, content, n);
        const size_t at = i % 2 ? random_u32(&seed) % 64 : random_u32(&seed) % n;
        copy[at] = (char)random_u32(&seed);
        scratch_write(bad, copy, n);
        trace_close(trace_open(bad, error, sizeof(error)));
        free(copy);
    }
    free(content);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("bench parts");
    TCase *const tests = tcase_create("bench parts");
    tcase_add_checked_fixture(tests, scratch_create, scratch_remove);
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, spreads_are_between_the_sorted_values);
    tcase_add_test(tests, gather_bandwidth_is_interpolated);
    tcase_add_test(tests, counters_count);
    tcase_add_test(tests, made_up_rows_do_not_depend_on_how_they_are_asked_for);
    tcase_add_test(tests, the_spread_of_attention_is_counted);
    tcase_add_test(tests, recordings_come_back_tiled);
    tcase_add_test(tests, damaged_recordings_are_refused);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
