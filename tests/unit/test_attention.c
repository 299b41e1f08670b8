/* Prefill and decode against the double-precision reference. */
#include <math.h>
#include <string.h>

#include "kv/rows.h"
#include "runtime/runtime.h"
#include "unit.h"

/* Shapes: every supported head dimension, key and value dims that differ, group sizes 1, 3, 4, 8, short and long. */
static const struct shape {
    size_t tokens, query_heads, kv_heads, key_dim, value_dim;
    dp_type type;
} shapes[] = {
    {1, 1, 1, 64, 64, DP_BF16},     {3, 4, 2, 64, 64, DP_F32},      {70, 8, 2, 80, 80, DP_F16},
    {2500, 4, 1, 64, 64, DP_BF16},  {3000, 6, 2, 96, 96, DP_F16},   {2300, 8, 1, 128, 128, DP_BF16},
    {2200, 2, 2, 256, 256, DP_F32}, {2100, 3, 1, 192, 128, DP_F16}, {2100, 4, 2, 8, 512, DP_BF16},
    {2100, 2, 1, 512, 8, DP_F32},   {9000, 4, 2, 72, 40, DP_BF16},
    {70, 8, 2, 80, 80, DP_INT8},     {2300, 8, 1, 128, 128, DP_INT8}, {9000, 4, 2, 72, 40, DP_INT8},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const double bound = 4e-5; /* of f32 arithmetic, relative to the output: logits are sums of up to 512 products */

START_TEST(decode_equals_reference)
{
    const struct shape *const sh = &shapes[_i % N_SHAPES];
    const dp_isa isa = _i < N_SHAPES ? DP_ISA_AUTO : DP_ISA_SCALAR;
    const size_t n_queries = sh->tokens < 5 ? 1 : 5;
    rng r = {(uint64_t)_i + 1};
    cache c = cache_create(&r, sh->tokens, sh->kv_heads, sh->key_dim, sh->value_dim, sh->type);
    dp_runtime *const rt = runtime_with(2, isa);
    dp_sequence_config config = sequence_config(&c, sh->query_heads, sh->type);
    config.softcap = _i % 2 ? 4 : 0; /* a shape's other form is that of the other ISA */
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, c.n_tokens, 300);
    ck_assert_int_eq(dp_build_index(s, DP_ALL_LAYERS), DP_OK);

    const size_t n_out = n_queries * sh->query_heads * sh->value_dim, n_lse = n_queries * sh->query_heads;
    float *const q = malloc(n_queries * sh->query_heads * sh->key_dim * sizeof *q);
    float *const out = malloc(n_out * sizeof *out), *const ref = malloc(n_out * sizeof *ref);
    float *const lse = malloc(n_lse * sizeof *lse), *const ref_lse = malloc(n_lse * sizeof *ref_lse);
    make_queries(&r, &c, n_queries, sh->query_heads, q);
    reference_capped_attention(&c, sh->query_heads, 1 / sqrtf((float)sh->key_dim), config.softcap, n_queries, q, ref, ref_lse);

    /* Dense, everything refined by either rule: all must be exact. */
    for (int form = 0; form < 4; form++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.p1 = params.p2 = 1;
        params.epsilon = 0;
        params.min_context = form == 3 ? 1u << 30 : 0;
        params.method = form == 0 ? DP_DENSE : DP_DOUBLE_P;
        params.refine = form == 1 ? DP_REFINE_TOP_P : DP_REFINE_BUDGET;
        dp_attention_stats stats;
        dp_attention_stats_init(&stats);
        memset(out, 0xff, n_out * sizeof *out);
        ck_assert_int_eq(dp_decode(s, 0, n_queries, q, &params, out, lse, &stats), DP_OK);
        ck_assert_double_lt(relative_error(out, ref, n_out), bound);
        ck_assert_double_lt(relative_error(lse, ref_lse, n_lse), bound);
        const int indexed = sh->tokens > 68; /* sink and window are never clustered */
        ck_assert_int_eq(stats.sparse, indexed && (form == 1 || form == 2));
        ck_assert_uint_eq(stats.tokens_exact + stats.tokens_refined, sh->tokens * sh->kv_heads);
        ck_assert_uint_eq(stats.bytes_rows, stats.bytes_dense);
        ck_assert_double_eq_tol(stats.mass_exact, 1, 1e-12);
    }
    free(q), free(out), free(ref), free(lse), free(ref_lse);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Prefill in chunks of several sizes, across the point where segments are clustered behind it. */
START_TEST(prefill_equals_reference)
{
    static const size_t chunks[] = {1, 7, 64, 333, 512};
    const struct shape *const sh = &shapes[3 + _i];
    rng r = {(uint64_t)_i + 100};
    cache c = cache_create(&r, 1500, sh->kv_heads, sh->key_dim, sh->value_dim, sh->type);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, sh->query_heads, sh->type);
    config.segment_tokens = 256;
    config.softcap = _i % 2 ? 4 : 0;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    float *const q = malloc(512 * sh->query_heads * sh->key_dim * sizeof *q);
    float *const out = malloc(512 * sh->query_heads * sh->value_dim * sizeof *out);
    float *const ref = malloc(512 * sh->query_heads * sh->value_dim * sizeof *ref);
    float *const lse = malloc(512 * sh->query_heads * sizeof *lse), *const ref_lse = malloc(512 * sh->query_heads * sizeof *ref_lse);
    for (size_t at = 0, step = 0; at < c.n_tokens; step++) {
        const size_t n = c.n_tokens - at < chunks[step % 5] ? c.n_tokens - at : chunks[step % 5];
        append(s, &c, at, at + n, n);
        at += n;
        cache seen = c;
        seen.n_tokens = at;
        make_queries(&r, &seen, n, sh->query_heads, q);
        reference_capped_attention(&seen, sh->query_heads, 1 / sqrtf((float)sh->key_dim), config.softcap, n, q, ref, ref_lse);
        ck_assert_int_eq(dp_prefill(s, 0, n, q, out, lse), DP_OK);
        ck_assert_double_lt(relative_error(out, ref, n * sh->query_heads * sh->value_dim), bound);
        ck_assert_double_lt(relative_error(lse, ref_lse, n * sh->query_heads), bound);
    }
    free(q), free(out), free(ref), free(lse), free(ref_lse);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* A NaN in a row that a query must not see must not reach it; one that it sees must. */
START_TEST(nan_stays_where_it_is_seen)
{
    rng r = {7};
    cache c = cache_create(&r, 4000, 1, 64, 64, DP_BF16);
    const size_t bad_token = _i == 0 ? 3998 : 1234; /* the last but one; one inside a cluster */
    (_i == 2 ? c.k : c.v)[bad_token * 64 + 5] = NAN;
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 2, DP_BF16);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, 3990, 500);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    append(s, &c, 3990, 4000, 10);
    float q[4 * 2 * 64], out[4 * 2 * 64];
    make_queries(&r, &c, 4, 2, q);
    for (int form = 0; form < 3; form++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.method = form == 0 ? DP_DENSE : DP_DOUBLE_P;
        if (form == 2) ck_assert_int_eq(dp_prefill(s, 0, 4, q, out, NULL), DP_OK);
        else ck_assert_int_eq(dp_decode(s, 0, 4, q, &params, out, NULL, NULL), DP_OK);
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++) {
                const float *const o = out + (i * 2 + h) * 64;
                const int sees = bad_token <= 3996 + (size_t)i;
                ck_assert_int_eq(isnan(o[5]) != 0, sees);
                if (!sees) for (int j = 0; j < 64; j++) ck_assert(isfinite(o[j]));
            }
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Logits whose exponentials overflow unless the maximum is subtracted. */
START_TEST(large_logits)
{
    rng r = {11};
    cache c = cache_create(&r, 3000, 1, 64, 64, DP_F32);
    dp_runtime *const rt = runtime_with(2, _i ? DP_ISA_SCALAR : DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 1, DP_F32);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, 3000, 500);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    float q[64], out[64], ref[64], lse, ref_lse;
    make_queries(&r, &c, 1, 1, q);
    for (int j = 0; j < 64; j++) q[j] *= 12;
    reference_attention(&c, 1, 0.125f, 1, q, ref, &ref_lse);
    ck_assert_float_gt(ref_lse, 100);
    for (int form = 0; form < 2; form++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.method = form ? DP_DOUBLE_P : DP_DENSE;
        params.p1 = 1;
        params.epsilon = 0;
        ck_assert_int_eq(dp_decode(s, 0, 1, q, &params, out, &lse, NULL), DP_OK);
        for (int j = 0; j < 64; j++) ck_assert(isfinite(out[j]));
        ck_assert_float_eq_tol(lse, ref_lse, 1e-5f * ref_lse);
        ck_assert_double_lt(relative_error(out, ref, 64), 1e-3); /* one token has all the mass; logits of 10^4 in f32 */
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Finite input never gives NaN or Inf, whatever the scale of the logits; dropped mass far above what is kept counts. */
START_TEST(extreme_scales_stay_finite)
{
    rng r = {(uint64_t)_i + 60};
    cache c = cache_create(&r, 2500, 1, 64, 64, DP_F32);
    for (size_t i = 0; i < 2400 * 64; i++) c.k[i] *= _i % 2 ? 1e4f : 30; /* the window's logits stay small */
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 2, DP_F32);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, 2500, 500);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    float q[128], out[128], lse[2];
    for (int j = 0; j < 128; j++) q[j] = rng_normal(&r);
    for (int form = 0; form < 16; form++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.refine = form & 1 ? DP_REFINE_TOP_P : DP_REFINE_BUDGET;
        params.p1 = form & 2 ? 1.0f : 0.0f;
        params.p2 = 0.5f * params.p1;
        params.keep_dropped = form & 4;
        params.min_clusters = form & 8 ? 3 : 0;
        ck_assert_int_eq(dp_decode(s, 0, 1, q, &params, out, lse, NULL), DP_OK);
        for (int j = 0; j < 128; j++) ck_assert_msg(isfinite(out[j]), "form %d: out[%d] is %g", form, j, (double)out[j]);
        ck_assert(isfinite(lse[0]) && isfinite(lse[1]));
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Rows of every type into sequences of every type, with room between tokens: what dp_append makes of the same numbers, and
 * rows of the sequence's own type as they are. */
START_TEST(typed_rows)
{
    enum { TOKENS = 2600, HEADS = 2, KEY = 24, VALUE = 40, ROOM = 16 };
    const dp_type from = (dp_type)(_i / DP_TYPE_COUNT), to = (dp_type)(_i % DP_TYPE_COUNT);
    rng r = {71};
    cache c = cache_create(&r, TOKENS, HEADS, KEY, VALUE, DP_F32);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    const size_t key = dp_row_bytes(from, KEY), value = dp_row_bytes(from, VALUE);
    const size_t k_stride = HEADS * key + ROOM, v_stride = HEADS * value + ROOM;
    char *const k = malloc(TOKENS * k_stride), *const v = malloc(TOKENS * v_stride);
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t h = 0; h < HEADS; h++) { /* both: the numbers are what the type holds */
            float *const ck = c.k + (t * HEADS + h) * KEY, *const cv = c.v + (t * HEADS + h) * VALUE;
            rt->kernels.from_f32[from](k + t * k_stride + h * key, ck, KEY);
            rt->kernels.from_f32[from](v + t * v_stride + h * value, cv, VALUE);
            rt->kernels.to_f32[from](ck, k + t * k_stride + h * key, KEY);
            rt->kernels.to_f32[from](cv, v + t * v_stride + h * value, VALUE);
        }
    dp_sequence_config config = sequence_config(&c, 2 * HEADS, to);
    dp_sequence *s, *wanted;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    ck_assert_int_eq(dp_sequence_create(rt, &config, &wanted), DP_OK);
    append(wanted, &c, 0, TOKENS, 650);
    for (size_t t = 0; t < TOKENS; t += 650)
        ck_assert_int_eq(dp_append_typed(s, 0, 650, from, k + t * k_stride, k_stride, v + t * v_stride, v_stride), DP_OK);
    float rows[2][2][VALUE];
    for (uint64_t t = 0; t < TOKENS; t += 37)
        for (uint32_t h = 0; h < HEADS; h++) {
            ck_assert_int_eq(dp_sequence_read(s, 0, h, t, 1, rows[0][0], rows[0][1]), DP_OK);
            ck_assert_int_eq(dp_sequence_read(wanted, 0, h, t, 1, rows[1][0], rows[1][1]), DP_OK);
            const float *const ck = c.k + (t * HEADS + h) * KEY, *const cv = c.v + (t * HEADS + h) * VALUE;
            ck_assert_mem_eq(rows[0][0], from == to ? ck : rows[1][0], KEY * sizeof(float));
            ck_assert_mem_eq(rows[0][1], from == to ? cv : rows[1][1], VALUE * sizeof(float));
        }
    float q[2 * HEADS * KEY], out[2][2 * HEADS * VALUE];
    make_queries(&r, &c, 1, 2 * HEADS, q);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out[0], NULL, NULL), DP_OK);
    ck_assert_int_eq(dp_decode(wanted, 0, 1, q, NULL, out[1], NULL, NULL), DP_OK);
    if (from != DP_INT8 || to != DP_INT8) ck_assert_mem_eq(out[0], out[1], sizeof out[0]); /* steps are rounded again there */
    dp_sequence_free(s);
    dp_sequence_free(wanted);
    dp_runtime_free(rt);
    cache_free(&c);
    free(k), free(v);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("attention");
    TCase *const tc = tcase_create("against the reference"), *const slow = slow_cases(suite);
    tcase_set_timeout(tc, 200);
    tcase_add_loop_test(tc, decode_equals_reference, 0, N_SHAPES);
    tcase_add_loop_test(slow, decode_equals_reference, N_SHAPES, 2 * N_SHAPES);
    tcase_add_loop_test(tc, prefill_equals_reference, 0, 2);
    tcase_add_loop_test(slow, prefill_equals_reference, 2, N_SHAPES - 3);
    tcase_add_loop_test(tc, nan_stays_where_it_is_seen, 0, 3);
    tcase_add_loop_test(tc, large_logits, 0, 2);
    tcase_add_loop_test(tc, typed_rows, 0, DP_TYPE_COUNT * DP_TYPE_COUNT);
    tcase_add_loop_test(tc, extreme_scales_stay_finite, 0, 6);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
