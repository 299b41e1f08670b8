/* Drawing a case, and comparing with the reference. */
#include "trial.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

uint64_t trial_seed(void)
{
    const char *const given = getenv("DP_TEST_SEED");
    return given ? strtoull(given, NULL, 0) : 20602;
}

int trial_rounds(int usual)
{
    const char *const given = getenv("DP_TEST_ROUNDS");
    return given ? atoi(given) : usual;
}

size_t trial_below(trial *t, size_t bound)
{
    return (size_t)((double)rng_uniform(&t->r) * (double)bound);
}

#define one_of(t, ...)                                                                                                 \
    ((const uint32_t[]){__VA_ARGS__}[trial_below(t, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))])

/* Mostly small numbers, now and then up to the bound. */
static size_t skewed(trial *t, size_t bound)
{
    return trial_below(t, 1 + trial_below(t, bound));
}

static dp_runtime *any_runtime(trial *t, int *n_threads)
{
    *n_threads = 1 + (int)trial_below(t, 3);
    for (;;) {
        dp_runtime_config config;
        dp_runtime_config_init(&config);
        config.n_threads = *n_threads;
        config.isa = (dp_isa)trial_below(t, DP_ISA_COUNT);
        dp_runtime *rt;
        const dp_status status = dp_runtime_create(&config, &rt);
        if (status != DP_ERR_UNSUPPORTED) {
            ck_assert_int_eq(status, DP_OK);
            return rt;
        }
    }
}

trial trial_open(int number, size_t least)
{
    trial t = {.r = {trial_seed() * 1000003 + (uint64_t)number * 7919}};
    for (int i = 0; i < 4; i++) rng_uniform(&t.r);
    int n_threads;
    t.rt = any_runtime(&t, &n_threads);
    const size_t kv_heads = 1 + trial_below(&t, 4), group = one_of(&t, 1, 1, 2, 3, 4, 5, 8);
    const size_t key_dim = 8 * one_of(&t, 1, 3, 5, 8, 8, 11, 16, 24), value_dim = 8 * one_of(&t, 1, 4, 7, 8, 8, 13, 16);
    const dp_type type = (dp_type)trial_below(&t, DP_TYPE_COUNT);
    const size_t n_tokens = least + skewed(&t, 3000) + 1;
    t.c = cache_create(&t.r, n_tokens, kv_heads, key_dim, value_dim, type);
    t.config = sequence_config(&t.c, kv_heads * group, type);
    t.config.scale = trial_below(&t, 3) ? 0 : 0.02f + 0.2f * rng_uniform(&t.r);
    t.config.softcap = trial_below(&t, 3) ? 0 : ldexpf(50, -(int)trial_below(&t, 7)); /* logits are mostly below 50 */
    t.config.sink = trial_below(&t, 2) ? 4 : (uint32_t)skewed(&t, 200);
    t.config.window = trial_below(&t, 2) ? 64 : 1 + (uint32_t)skewed(&t, 300); /* 0 leaves nothing to query */
    t.config.tokens_per_cluster = one_of(&t, 4, 8, 16, 16, 33, 200);
    t.config.segment_tokens = one_of(&t, 64, 100, 512, 1024, 8192);
    t.config.pending_tokens = one_of(&t, 64, 100, 256, 1024);
    t.config.iterations = one_of(&t, 1, 3, 8);
    t.config.outlier_share = 0.125f * (float)trial_below(&t, 5);
    t.config.clustering = (dp_clustering)trial_below(&t, 2);
    t.config.query_metric = 0.33f * (float)trial_below(&t, 4);
    t.config.query_origin = 0.5f * (float)trial_below(&t, 3);
    const size_t most = t.config.window; /* queries of tokens that are not clustered yet */
    t.n_queries = 1 + skewed(&t, most < n_tokens ? (most < 20 ? most : 20) : 1);
    t.n_out = t.n_queries * kv_heads * group * value_dim;
    t.n_lse = t.n_queries * kv_heads * group;
    t.q = malloc(t.n_lse * key_dim * sizeof *t.q);
    make_queries(&t.r, &t.c, t.n_queries, kv_heads * group, t.q);
    snprintf(t.words, sizeof t.words,
             "DP_TEST_SEED=%llu case %d (%zu tokens, %zu x %zu heads, %zu + %zu dims, type %d, sink %u, window %u, segments "
             "of %u, %zu queries, soft cap %g, %s, %d threads)",
             (unsigned long long)trial_seed(), number, n_tokens, kv_heads, group, key_dim, value_dim, (int)type,
             t.config.sink, t.config.window, t.config.segment_tokens, t.n_queries, (double)t.config.softcap, dp_isa_name(info_of(t.rt).isa), n_threads);
    return t;
}

void trial_close(trial *t)
{
    free(t->q);
    cache_free(&t->c);
    dp_runtime_free(t->rt);
}

void trial_fail(const trial *t, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    ck_abort_msg("%s: %s", t->words, text);
    abort(); /* not reached: ck_abort_msg is not known to end the test without fork() */
}

static void expect_ok(const trial *t, dp_status status)
{
    char text[256];
    trial_expect(t, status == DP_OK, "%s", dp_last_error(t->rt, text, sizeof text));
}

dp_sequence *trial_sequence(const trial *t)
{
    dp_sequence *s;
    expect_ok(t, dp_sequence_create(t->rt, &t->config, &s));
    return s;
}

void trial_append(trial *t, dp_sequence *s, size_t first, size_t last, size_t shortest)
{
    while (first < last) {
        size_t n = shortest + skewed(t, 600);
        if (last - first < n + shortest) n = last - first;
        expect_ok(t, dp_append(s, 0, n, t->c.k + first * t->c.n_kv_heads * t->c.key_dim, 0,
                               t->c.v + first * t->c.n_kv_heads * t->c.value_dim, 0));
        first += n;
    }
}

dp_attention_params trial_exact_params(trial *t)
{
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.method = trial_below(t, 4) ? DP_DOUBLE_P : DP_DENSE;
    params.refine = (dp_refine)trial_below(t, 2);
    params.p1 = params.p2 = 1;
    params.epsilon = 0;
    params.min_context = 0;
    return params;
}

dp_attention_params trial_sparse_params(trial *t)
{
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.refine = (dp_refine)trial_below(t, 2);
    params.p1 = 0.5f + 0.5f * rng_uniform(&t->r);
    params.p2 = params.p1 * rng_uniform(&t->r);
    params.epsilon = 0.2f * rng_uniform(&t->r);
    params.min_context = 0;
    params.min_clusters = (uint32_t)skewed(t, 10);
    params.keep_dropped = (int32_t)trial_below(t, 2);
    params.slope = (int32_t)trial_below(t, 2);
    return params;
}

void trial_decode(const trial *t, dp_sequence *s, const dp_attention_params *params, float *out, float *lse)
{
    memset(out, 0xff, t->n_out * sizeof *out);
    memset(lse, 0xff, t->n_lse * sizeof *lse);
    expect_ok(t, dp_decode(s, 0, t->n_queries, t->q, params, out, lse, NULL));
}

static float *magnitudes(const float *x, size_t n)
{
    float *const y = malloc(n * sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = fabsf(x[i]);
    return y;
}

/* Largest sum of |q k|, times the scale: what the rounding of a logit is relative to. */
static double largest_logit(const trial *t, float scale)
{
    const size_t group = t->config.n_query_heads / t->config.n_kv_heads, dim = t->c.key_dim;
    double largest = 0;
    for (size_t row = 0; row < t->n_lse; row++)
        for (size_t i = 0; i < t->c.n_tokens; i++) {
            const float *const k = t->c.k + (i * t->c.n_kv_heads + row % t->config.n_query_heads / group) * dim;
            double sum = 0;
            for (size_t j = 0; j < dim; j++) sum += fabs((double)t->q[row * dim + j] * k[j]);
            largest = fmax(largest, sum);
        }
    return largest * scale;
}

void trial_expect_dense(const trial *t, const float *out, const float *lse)
{
    const float scale = t->config.scale > 0 ? t->config.scale : 1 / sqrtf((float)t->c.key_dim);
    float *const ref = malloc(t->n_out * sizeof *ref), *const size = malloc(t->n_out * sizeof *size);
    float *const ref_lse = malloc(t->n_lse * sizeof *ref_lse);
    cache absolute = t->c;
    absolute.v = magnitudes(t->c.v, t->c.n_tokens * t->c.n_kv_heads * t->c.value_dim);
    const float cap = t->config.softcap;
    reference_capped_attention(&t->c, t->config.n_query_heads, scale, cap, t->n_queries, t->q, ref, ref_lse);
    reference_capped_attention(&absolute, t->config.n_query_heads, scale, cap, t->n_queries, t->q, size, NULL);
    const double largest = largest_logit(t, scale), capping = cap > 0 ? 8 * fmin(largest, (double)cap) : 0;
    const double logit = (((double)t->c.key_dim / 8 + 10) * largest + capping) * 0x1p-24;
    const double sums = (64 + 4 * sqrt((double)t->c.n_tokens)) * 0x1p-24;
    for (size_t i = 0; i < t->n_lse; i++)
        trial_expect(t, fabs((double)lse[i] - ref_lse[i]) <= logit + sums + 0x1p-22 * fabs((double)ref_lse[i]),
                     "lse[%zu] is %.9g, expected %.9g", i, (double)lse[i], (double)ref_lse[i]);
    for (size_t i = 0; i < t->n_out; i++)
        trial_expect(t, fabs((double)out[i] - ref[i]) <= (2 * logit + sums) * size[i], "out[%zu] is %.9g, expected %.9g", i,
                     (double)out[i], (double)ref[i]);
    free(ref), free(size), free(ref_lse), free(absolute.v);
}
