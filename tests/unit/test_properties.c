/* What must hold whatever the shapes and settings are, on random cases (trial.h): DP_TEST_SEED and DP_TEST_ROUNDS in the
 * environment choose others, and more. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "trial.h"

typedef struct result {
    float *out, *lse;
} result;

static result result_of(const trial *t, dp_sequence *s, const dp_attention_params *params)
{
    const result r = {malloc(t->n_out * sizeof *r.out), malloc(t->n_lse * sizeof *r.lse)};
    trial_decode(t, s, params, r.out, r.lse);
    return r;
}

static void result_free(result r)
{
    free(r.out), free(r.lse);
}

/* Refined down to the last token, by settings that are drawn: dense attention. */
static void expect_exact(trial *t, dp_sequence *s)
{
    const dp_attention_params params = trial_exact_params(t);
    const result r = result_of(t, s, &params);
    trial_expect_dense(t, r.out, r.lse);
    result_free(r);
}

static void expect_same_bits(const trial *t, const char *what, result a, result b)
{
    for (size_t i = 0; i < t->n_out; i++)
        trial_expect(t, !memcmp(a.out + i, b.out + i, sizeof *a.out), "%s: out[%zu] is %.9g and %.9g", what, i,
                     (double)a.out[i], (double)b.out[i]);
    for (size_t i = 0; i < t->n_lse; i++)
        trial_expect(t, !memcmp(a.lse + i, b.lse + i, sizeof *a.lse), "%s: lse[%zu] is %.9g and %.9g", what, i,
                     (double)a.lse[i], (double)b.lse[i]);
}

/* The case's tokens, by appends of any length; indexed or not, queries observed or not. */
static dp_sequence *grown(trial *t)
{
    dp_sequence *const s = trial_sequence(t);
    if (trial_below(t, 2)) ck_assert_int_eq(dp_observe_queries(s, 0, t->n_queries, t->q), DP_OK);
    const size_t prompt = trial_below(t, 3) ? t->c.n_tokens : t->c.n_tokens / 2;
    trial_append(t, s, 0, prompt, 1);
    if (trial_below(t, 2)) ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    append(s, &t->c, prompt, t->c.n_tokens, 1);
    return s;
}

START_TEST(refining_all_is_dense)
{
    trial t = trial_open(_i, 20);
    dp_sequence *const s = grown(&t);
    for (int form = 0; form < 3; form++) expect_exact(&t, s);
    dp_sequence_free(s);
    trial_close(&t);
}
END_TEST

/* Every token goes to one of two or three sequences; the queries, of the last token, go to all. */
START_TEST(parts_merge_to_the_whole)
{
    trial t = trial_open(_i, 20);
    t.n_out /= t.n_queries, t.n_lse /= t.n_queries, t.n_queries = 1;
    const size_t n_parts = 2 + trial_below(&t, 2), k_size = t.c.n_kv_heads * t.c.key_dim, v_size = t.c.n_kv_heads * t.c.value_dim;
    dp_sequence *parts[3];
    for (size_t i = 0; i < n_parts; i++) parts[i] = trial_sequence(&t);
    for (size_t first = 0, n; first < t.c.n_tokens; first += n) {
        n = 1 + trial_below(&t, 200);
        if (n > t.c.n_tokens - first) n = t.c.n_tokens - first;
        const size_t part = first ? trial_below(&t, n_parts) : 0;
        ck_assert_int_eq(dp_append(parts[part], 0, n, t.c.k + first * k_size, 0, t.c.v + first * v_size, 0), DP_OK);
    }
    double *const sums = calloc(t.n_out, sizeof *sums), *const weights = calloc(t.n_lse, sizeof *weights);
    result r[3];
    for (size_t i = 0; i < n_parts; i++) {
        if (!dp_sequence_tokens(parts[i], 0)) continue;
        const dp_attention_params params = trial_exact_params(&t);
        r[i] = result_of(&t, parts[i], &params);
    }
    for (size_t h = 0; h < t.n_lse; h++) {
        double top = -INFINITY, sum = 0;
        for (size_t i = 0; i < n_parts; i++)
            if (dp_sequence_tokens(parts[i], 0)) top = fmax(top, r[i].lse[h]);
        for (size_t i = 0; i < n_parts; i++)
            if (dp_sequence_tokens(parts[i], 0)) sum += exp(r[i].lse[h] - top);
        weights[h] = top + log(sum);
    }
    for (size_t i = 0; i < n_parts; i++) {
        if (dp_sequence_tokens(parts[i], 0)) {
            for (size_t j = 0; j < t.n_out; j++)
                sums[j] += exp(r[i].lse[j / t.c.value_dim] - weights[j / t.c.value_dim]) * r[i].out[j];
            result_free(r[i]);
        }
        dp_sequence_free(parts[i]);
    }
    const result whole = {malloc(t.n_out * sizeof(float)), malloc(t.n_lse * sizeof(float))};
    for (size_t j = 0; j < t.n_out; j++) whole.out[j] = (float)sums[j];
    for (size_t h = 0; h < t.n_lse; h++) whole.lse[h] = (float)weights[h];
    trial_expect_dense(&t, whole.out, whole.lse);
    result_free(whole);
    free(sums), free(weights);
    trial_close(&t);
}
END_TEST

/* However a prompt is cut, in appends of 64 tokens or more: the same bits once the index is built. */
START_TEST(cuts_of_a_prompt_leave_no_trace)
{
    trial t = trial_open(_i, 200);
    const dp_attention_params params = trial_sparse_params(&t);
    dp_sequence *s[2];
    result r[2];
    for (int i = 0; i < 2; i++) {
        s[i] = trial_sequence(&t);
        trial_append(&t, s[i], 0, t.c.n_tokens, 64);
        ck_assert_int_eq(dp_build_index(s[i], 0), DP_OK);
        r[i] = result_of(&t, s[i], &params);
    }
    expect_same_bits(&t, "other cuts", r[0], r[1]);
    for (int i = 0; i < 2; i++) result_free(r[i]), dp_sequence_free(s[i]);
    trial_close(&t);
}
END_TEST

/* Heads in another order, sparsely: each has the bits that it had. */
START_TEST(heads_know_nothing_of_each_other)
{
    trial t = trial_open(_i, 100);
    const dp_attention_params params = trial_sparse_params(&t);
    const size_t heads = t.c.n_kv_heads, group = t.config.n_query_heads / heads, shift = trial_below(&t, heads);
    const size_t key_dim = t.c.key_dim, value_dim = t.c.value_dim;
    trial turned = t;
    turned.c.k = malloc(t.c.n_tokens * heads * key_dim * sizeof(float));
    turned.c.v = malloc(t.c.n_tokens * heads * value_dim * sizeof(float));
    turned.q = malloc(t.n_lse * key_dim * sizeof(float));
    for (size_t i = 0; i < t.c.n_tokens; i++)
        for (size_t h = 0; h < heads; h++) {
            const size_t from = i * heads + h, to = i * heads + (h + shift) % heads;
            memcpy(turned.c.k + to * key_dim, t.c.k + from * key_dim, key_dim * sizeof(float));
            memcpy(turned.c.v + to * value_dim, t.c.v + from * value_dim, value_dim * sizeof(float));
        }
    for (size_t i = 0; i < t.n_queries; i++)
        for (size_t h = 0; h < heads; h++)
            memcpy(turned.q + (i * heads + (h + shift) % heads) * group * key_dim, t.q + (i * heads + h) * group * key_dim,
                   group * key_dim * sizeof(float));
    const bool observed = trial_below(&t, 2);
    trial *const both[2] = {&t, &turned};
    result r[2];
    for (int i = 0; i < 2; i++) {
        dp_sequence *const s = trial_sequence(both[i]);
        if (observed) ck_assert_int_eq(dp_observe_queries(s, 0, t.n_queries, both[i]->q), DP_OK);
        trial_append(both[i], s, 0, t.c.n_tokens, 64);
        ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
        r[i] = result_of(both[i], s, &params);
        dp_sequence_free(s);
    }
    const result back = {malloc(t.n_out * sizeof(float)), malloc(t.n_lse * sizeof(float))};
    for (size_t i = 0; i < t.n_queries; i++)
        for (size_t h = 0; h < heads; h++) {
            const size_t to = (i * heads + h) * group, from = (i * heads + (h + shift) % heads) * group;
            memcpy(back.out + to * value_dim, r[1].out + from * value_dim, group * value_dim * sizeof(float));
            memcpy(back.lse + to, r[1].lse + from, group * sizeof(float));
        }
    expect_same_bits(&t, "heads in another order", r[0], back);
    result_free(r[0]), result_free(r[1]), result_free(back);
    free(turned.c.k), free(turned.c.v), free(turned.q);
    trial_close(&t);
}
END_TEST

/* One component of all keys is 1, and that of the queries is changed: all logits of a head move together. */
START_TEST(constant_in_all_logits)
{
    trial t = trial_open(_i, 20);
    const size_t dim = t.c.key_dim, component = trial_below(&t, dim);
    for (size_t i = 0; i < t.c.n_tokens * t.c.n_kv_heads; i++) t.c.k[i * dim + component] = 1;
    if (t.config.type == DP_INT8) t.config.type = DP_F32; /* 1 is not a multiple of each row's step */
    dp_sequence *const s = grown(&t);
    const float scale = t.config.scale > 0 ? t.config.scale : 1 / sqrtf((float)dim), constants[] = {0, 5, -300};
    for (int i = 0; i < 3; i++) {
        for (size_t row = 0; row < t.n_lse; row++) t.q[row * dim + component] = constants[i] / scale;
        expect_exact(&t, s);
    }
    dp_sequence_free(s);
    trial_close(&t);
}
END_TEST

/* Twice the values, twice the output, to the bit: f32 and what values are rounded to have powers of two. */
START_TEST(values_are_linear)
{
    trial t = trial_open(_i, 100);
    const dp_attention_params params = trial_sparse_params(&t);
    result r[2];
    const rng start = t.r;
    for (int i = 0; i < 2; i++) {
        t.r = start; /* cut alike */
        dp_sequence *const s = grown(&t);
        r[i] = result_of(&t, s, &params);
        dp_sequence_free(s);
        for (size_t j = 0; j < t.c.n_tokens * t.c.n_kv_heads * t.c.value_dim; j++) t.c.v[j] *= 2;
    }
    for (size_t j = 0; j < t.n_out; j++) r[0].out[j] *= 2;
    expect_same_bits(&t, "doubled values", r[0], r[1]);
    result_free(r[0]), result_free(r[1]);
    trial_close(&t);
}
END_TEST

/* Back to a length and on with other tokens: as dense attention over what is there now. */
START_TEST(truncated_tokens_never_were)
{
    trial t = trial_open(_i, 60);
    dp_sequence *const s = grown(&t);
    const size_t kept = trial_below(&t, t.c.n_tokens - t.n_queries), heads = t.c.n_kv_heads;
    ck_assert_int_eq(dp_sequence_truncate(s, 0, kept), DP_OK);
    cache other = cache_create(&t.r, t.c.n_tokens - kept, heads, t.c.key_dim, t.c.value_dim, t.config.type);
    memcpy(t.c.k + kept * heads * t.c.key_dim, other.k, other.n_tokens * heads * t.c.key_dim * sizeof(float));
    memcpy(t.c.v + kept * heads * t.c.value_dim, other.v, other.n_tokens * heads * t.c.value_dim * sizeof(float));
    trial_append(&t, s, kept, t.c.n_tokens, 1);
    if (trial_below(&t, 2)) ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    expect_exact(&t, s);
    cache_free(&other);
    dp_sequence_free(s);
    trial_close(&t);
}
END_TEST

/* A fork, a sequence that was made by the same calls, and the original: the same bits, now and after the same appends. */
START_TEST(fork_is_a_copy)
{
    trial t = trial_open(_i, 100);
    const dp_attention_params params = trial_sparse_params(&t);
    const size_t n = t.c.n_tokens, half = n / 2;
    t.c.n_tokens = half;
    const rng start = t.r;
    dp_sequence *s[3];
    s[0] = grown(&t);
    t.r = start;
    s[1] = grown(&t);
    ck_assert_int_eq(dp_sequence_fork(s[0], &s[2]), DP_OK);
    t.c.n_tokens = n;
    const rng later = t.r;
    for (int round = 0; round < 2; round++) {
        result r[3];
        for (int i = 0; i < 3; i++) r[i] = result_of(&t, s[i], &params);
        expect_same_bits(&t, "the same calls", r[0], r[1]);
        expect_same_bits(&t, "fork", r[0], r[2]);
        for (int i = 0; i < 3; i++) {
            result_free(r[i]);
            t.r = later;
            if (!round) trial_append(&t, s[i], half, n, 1);
        }
    }
    for (int i = 0; i < 3; i++) dp_sequence_free(s[i]);
    trial_close(&t);
}
END_TEST

int main(void)
{
    printf("DP_TEST_SEED=%llu DP_TEST_ROUNDS=%d\n", (unsigned long long)trial_seed(), trial_rounds(12));
    Suite *const suite = suite_create("properties");
    TCase *const tc = tcase_create("properties");
    tcase_set_timeout(tc, 200);
    const int n = trial_rounds(12);
    tcase_add_loop_test(tc, refining_all_is_dense, 0, n);
    tcase_add_loop_test(tc, parts_merge_to_the_whole, 0, n);
    tcase_add_loop_test(tc, cuts_of_a_prompt_leave_no_trace, 0, n);
    tcase_add_loop_test(tc, heads_know_nothing_of_each_other, 0, n);
    tcase_add_loop_test(tc, constant_in_all_logits, 0, n);
    tcase_add_loop_test(tc, values_are_linear, 0, n);
    tcase_add_loop_test(tc, truncated_tokens_never_were, 0, n);
    tcase_add_loop_test(tc, fork_is_a_copy, 0, n);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
