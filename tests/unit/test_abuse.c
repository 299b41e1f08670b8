/* Input that no model should give, on every ISA that the machine has: what doublep.h says of it holds. Where dense
 * attention in double precision has a number, so have we; where it has NaN or Inf, we have one of the two. */
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "unit.h"

enum { QUERIES = 3, HEADS = 4, KV_HEADS = 2, GROUP = HEADS / KV_HEADS, ISAS = DP_ISA_COUNT - 1 };

static const char *const words = "%s, %s, form %d: %s[%zu] is %.9g, expected %.9g";

/* Prefill, decoding densely, all refined by either rule, and with the defaults. */
enum { PREFILL, DENSE, ALL_TOP_P, ALL_BUDGET, DEFAULTS, FORMS };

static dp_attention_params params_of(int form)
{
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.min_context = 0;
    params.method = form == DENSE ? DP_DENSE : DP_DOUBLE_P;
    if (form == DEFAULTS) return params;
    params.refine = form == ALL_TOP_P ? DP_REFINE_TOP_P : DP_REFINE_BUDGET;
    params.p1 = params.p2 = 1;
    params.epsilon = 0;
    return params;
}

/* NULL where the machine has no such ISA. */
static dp_runtime *runtime_of(dp_isa isa)
{
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = 2;
    config.isa = isa;
    dp_runtime *rt;
    const dp_status status = dp_runtime_create(&config, &rt);
    ck_assert(status == DP_OK || status == DP_ERR_UNSUPPORTED);
    return rt;
}

/* Whether a number is as it should be. A value of Inf with a weight that f32 has as 0 gives NaN. */
static bool alike(float got, float wanted, double bound)
{
    return isfinite(wanted) ? isfinite(got) && fabs((double)got - wanted) <= bound : !isfinite(got);
}

/* Fills a sequence, decodes QUERIES queries by all forms, and compares. softcap: as in dp_sequence_config. `bound` is relative to the largest value;
 * `estimated` is that of the defaults, which are not exact, 0: the same. */
static void check_capped(dp_isa isa, const char *what, const cache *c, float softcap, const float *q, dp_type type,
                         double bound, double estimated)
{
    dp_runtime *const rt = runtime_of(isa);
    if (!rt) return;
    const size_t n_queries = c->n_tokens < QUERIES ? c->n_tokens : QUERIES, n_out = n_queries * HEADS * c->value_dim;
    float *const out = malloc(n_out * sizeof *out), *const ref = malloc(n_out * sizeof *ref);
    float lse[QUERIES * HEADS], ref_lse[QUERIES * HEADS];
    reference_capped_attention(c, HEADS, 1 / sqrtf((float)c->key_dim), softcap, n_queries, q, ref, ref_lse);
    double largest = 0;
    for (size_t i = 0; i < c->n_tokens * KV_HEADS * c->value_dim; i++)
        if (isfinite(c->v[i])) largest = fmax(largest, fabs((double)c->v[i]));
    for (int form = 0; form < FORMS; form++) {
        dp_sequence_config config = sequence_config(c, HEADS, type);
        config.segment_tokens = 512;
        config.softcap = softcap;
        dp_sequence *s;
        ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
        append(s, c, 0, c->n_tokens, c->n_tokens > 1000 ? 300 : 40);
        const dp_attention_params params = params_of(form);
        if (form == PREFILL) {
            ck_assert_int_eq(dp_prefill(s, 0, n_queries, q, out, lse), DP_OK);
        } else {
            if (form != DENSE) ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
            ck_assert_int_eq(dp_decode(s, 0, n_queries, q, &params, out, lse, NULL), DP_OK);
        }
        const double allowed = form == DEFAULTS && estimated > 0 ? estimated : bound;
        for (size_t i = 0; i < n_out; i++)
            ck_assert_msg(alike(out[i], ref[i], allowed * largest), words, dp_isa_name(isa), what, form, "out", i,
                          (double)out[i], (double)ref[i]);
        for (size_t i = 0; i < n_queries * HEADS; i++)
            ck_assert_msg(alike(lse[i], ref_lse[i], allowed * (1 + fabs((double)ref_lse[i]))), words, dp_isa_name(isa), what,
                          form, "lse", i, (double)lse[i], (double)ref_lse[i]);
        dp_sequence_free(s);
    }
    free(out), free(ref);
    dp_runtime_free(rt);
}

/* Without a soft cap and with one, which leaves no logit infinite. */
static void check(dp_isa isa, const char *what, const cache *c, const float *q, dp_type type, double bound, double estimated)
{
    check_capped(isa, what, c, 0, q, type, bound, estimated);
    check_capped(isa, what, c, 9, q, type, bound, estimated);
}

/* ---- One number that is none, in each place ---- */

static const float bad_numbers[] = {NAN, INFINITY, -INFINITY};

enum { TOKENS = 1500, DIM = 64 };

/* In the sink, in a cluster, at a segment's end, in the window, the token that only the last query sees. */
static const size_t places[] = {1, 700, 515, 1480, TOKENS - 1};

static void bad_number(dp_isa isa, int where, float bad)
{
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        rng r = {91};
        cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
        float q[QUERIES * HEADS * DIM];
        make_queries(&r, &c, QUERIES, HEADS, q);
        float *const x = where == 0 ? q : where == 1 ? c.k : c.v;
        x[where == 0 ? (i % QUERIES * HEADS + i % HEADS) * DIM + 7 : (places[i] * KV_HEADS + i % KV_HEADS) * DIM + 7] = bad;
        check(isa, where == 0 ? "bad query" : where == 1 ? "bad key" : "bad value", &c, q, DP_BF16, 1e-4, 0.1);
        cache_free(&c);
    }
}

START_TEST(bad_numbers_show_where_they_are_seen)
{
    bad_number((dp_isa)(1 + _i / 9), _i / 3 % 3, bad_numbers[_i % 3]);
}
END_TEST

/* Keys that a model masks: -Inf in a component that the queries have positive, or a large negative number. All but a few;
 * all of a segment; all there are, which leaves a sum of nothing. */
START_TEST(masks)
{
    const dp_isa isa = (dp_isa)(1 + _i / 6);
    const float mask = _i % 2 ? -INFINITY : -1e30f;
    rng r = {93};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_F32);
    float q[QUERIES * HEADS * DIM];
    make_queries(&r, &c, QUERIES, HEADS, q);
    for (size_t row = 0; row < QUERIES * HEADS; row++) q[row * DIM + 3] = 1;
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t h = 0; h < KV_HEADS; h++) {
            const bool masked = _i / 2 % 3 == 0   ? t % 100 != 17 && t + 3 < TOKENS
                                : _i / 2 % 3 == 1 ? t > 500 && t < 1100
                                                  : isinf(mask);
            c.k[(t * KV_HEADS + h) * DIM + 3] = masked ? mask : 0;
        }
    check(isa, "masks", &c, q, DP_F32, 1e-4, 0.1);
    cache_free(&c);
}
END_TEST

/* All logits of one query are -Inf: it has nothing to attend to. The others do not notice. */
START_TEST(nothing_to_see)
{
    rng r = {95};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_F16);
    float q[QUERIES * HEADS * DIM], out[QUERIES * HEADS * DIM], lse[QUERIES * HEADS];
    make_queries(&r, &c, QUERIES, HEADS, q);
    enum { BLIND = HEADS + 2 }; /* query 1, head 2 */
    for (size_t i = 0; i < (size_t)TOKENS * KV_HEADS; i++) c.k[i * DIM] = 1;
    q[BLIND * DIM] = -INFINITY;
    dp_runtime *const rt = runtime_of((dp_isa)(1 + _i));
    for (int form = 0; rt && form < FORMS; form++) {
        dp_sequence_config config = sequence_config(&c, HEADS, DP_F16);
        dp_sequence *s;
        ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
        append(s, &c, 0, TOKENS, 300);
        const dp_attention_params params = params_of(form);
        if (form == PREFILL) ck_assert_int_eq(dp_prefill(s, 0, QUERIES, q, out, lse), DP_OK);
        else ck_assert_int_eq(dp_decode(s, 0, QUERIES, q, &params, out, lse, NULL), DP_OK);
        for (size_t row = 0; row < QUERIES * HEADS; row++) {
            ck_assert(row == BLIND ? lse[row] == -INFINITY : isfinite(lse[row]) != 0);
            for (size_t j = 0; j < DIM; j++)
                ck_assert(row == BLIND ? isnan(out[row * DIM + j]) != 0 : isfinite(out[row * DIM + j]) != 0);
        }
        dp_sequence_free(s);
    }
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* ---- Keys without differences ---- */

START_TEST(keys_alike)
{
    const dp_isa isa = (dp_isa)(1 + _i / 4);
    static const char *const names[] = {"equal keys", "zero keys", "duplicates", "zero queries"};
    rng r = {97};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
    float q[QUERIES * HEADS * DIM];
    make_queries(&r, &c, QUERIES, HEADS, q);
    for (size_t i = 0; i < (size_t)TOKENS * KV_HEADS * DIM; i++) {
        if (_i % 4 == 0) c.k[i] = (float)(i % DIM) / 16 - 2;
        if (_i % 4 == 1) c.k[i] = i % 2 ? 0.0f : -0.0f;
        if (_i % 4 == 2) c.k[i] = c.k[i % (5 * KV_HEADS * DIM)], c.v[i] = c.v[i % (5 * KV_HEADS * DIM)];
    }
    if (_i % 4 == 3) memset(q, 0, sizeof q);
    check(isa, names[_i % 4], &c, q, DP_BF16, 1e-4, 0.1);
    cache_free(&c);
}
END_TEST

/* ---- Sizes ---- */

/* One token, fewer than sink and window have, just as many, a cluster's worth more; dimensions that fill no vector. */
START_TEST(small_contexts_and_odd_dimensions)
{
    static const size_t lengths[] = {1, 2, 4, 5, 63, 68, 69, 84, 200}, dims[] = {8, 24, 40, 72, 88, 120, 264};
    const dp_isa isa = (dp_isa)(1 + _i);
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
            rng r = {101 + l};
            const dp_type type = (dp_type)((l + d) % DP_TYPE_COUNT);
            cache c = cache_create(&r, lengths[l], KV_HEADS, dims[d], dims[6 - d], type);
            float *const q = malloc(QUERIES * HEADS * dims[d] * sizeof *q);
            make_queries(&r, &c, QUERIES, HEADS, q);
            char what[64];
            snprintf(what, sizeof what, "%zu tokens, %zu + %zu dims", lengths[l], dims[d], dims[6 - d]);
            check(isa, what, &c, q, type, 1e-4, INFINITY); /* a cluster or two: no estimate can be good */
            free(q);
            cache_free(&c);
        }
}
END_TEST

/* ---- Magnitudes ---- */

/* Logits of thousands, all of one sign and of both: exp overflows, or gives nothing but 0, unless the maximum is
 * subtracted. Rounding of the larger ones decides which token wins. The last factor: logits beyond f32 are infinite. */
START_TEST(large_logits)
{
    static const float factors[] = {100, 3000, 1e21f};
    const dp_isa isa = (dp_isa)(1 + _i / 9);
    const float sign = (float)(_i / 3 % 3) - 1, factor = factors[_i % 3];
    rng r = {103};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_F32);
    float q[QUERIES * HEADS * DIM];
    make_queries(&r, &c, QUERIES, HEADS, q);
    for (size_t i = 0; i < (size_t)TOKENS * KV_HEADS * DIM; i++)
        c.k[i] = sign != 0 ? 1 + fabsf(c.k[i]) : c.k[i] * (factor > 1e10f ? 1e20f : 1);
    for (size_t i = 0; i < QUERIES * HEADS * DIM; i++) q[i] = sign != 0 ? sign * factor / 100 * fabsf(q[i]) : q[i] * factor / 100;
    dp_runtime *const rt = runtime_of(isa);
    if (rt && factor > 1e10f && sign == 0) {
        for (int form = DENSE; form < FORMS; form++) {
            dp_sequence_config config = sequence_config(&c, HEADS, DP_F32);
            dp_sequence *s;
            float out[QUERIES * HEADS * DIM];
            ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
            append(s, &c, 0, TOKENS, 300);
            ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
            const dp_attention_params params = params_of(form);
            ck_assert_int_eq(dp_decode(s, 0, QUERIES, q, &params, out, NULL, NULL), DP_OK);
            for (size_t i = 0; i < QUERIES * HEADS * DIM; i++) ck_assert_msg(isnan(out[i]), "form %d: %g", form, (double)out[i]);
            dp_sequence_free(s);
        }
    } else if (rt) {
        check(isa, "large logits", &c, q, DP_F32, factor > 1e10f ? INFINITY : 1e-2, INFINITY);
    }
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Values near the largest f32 and among the smallest: no overflow on the way to a mean that can be had. */
START_TEST(extreme_values)
{
    const dp_isa isa = (dp_isa)(1 + _i / 2);
    rng r = {107};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_F32);
    float q[QUERIES * HEADS * DIM];
    make_queries(&r, &c, QUERIES, HEADS, q);
    for (size_t i = 0; i < (size_t)TOKENS * KV_HEADS * DIM; i++) c.v[i] *= _i % 2 ? 1e-38f : 1e34f;
    check(isa, "extreme values", &c, q, DP_F32, 1e-4, 0.1);
    cache_free(&c);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("abuse");
    TCase *const tc = tcase_create("abuse");
    tcase_set_timeout(tc, 200);
    tcase_add_loop_test(tc, bad_numbers_show_where_they_are_seen, 0, 9 * ISAS);
    tcase_add_loop_test(tc, masks, 0, 6 * ISAS);
    tcase_add_loop_test(tc, nothing_to_see, 0, ISAS);
    tcase_add_loop_test(tc, keys_alike, 0, 4 * ISAS);
    tcase_add_loop_test(tc, small_contexts_and_odd_dimensions, 0, ISAS);
    tcase_add_loop_test(tc, large_logits, 0, 9 * ISAS);
    tcase_add_loop_test(tc, extreme_values, 0, 2 * ISAS);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
