/* Double-P's selection: what the settings promise, measured against the definition in double precision. */
#include <math.h>
#include <string.h>

#include "attention/step.h"
#include "unit.h"

enum { TOKENS = 8260, DIM = 64 };

typedef struct fixture {
    cache c;
    dp_runtime *rt;
    dp_sequence *s;
    float q[2 * DIM], ref[2 * DIM], ref_lse[2];
} fixture;

static fixture open_fixture(uint64_t seed, float outlier_share)
{
    fixture f;
    rng r = {seed};
    f.c = cache_create(&r, TOKENS, 1, DIM, DIM, DP_F32);
    f.rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&f.c, 2, DP_F32);
    config.outlier_share = outlier_share;
    ck_assert_int_eq(dp_sequence_create(f.rt, &config, &f.s), DP_OK);
    append(f.s, &f.c, 0, TOKENS, 500);
    ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
    make_queries(&r, &f.c, 1, 2, f.q);
    reference_attention(&f.c, 2, 0.125f, 1, f.q, f.ref, f.ref_lse);
    return f;
}

static void close_fixture(fixture *f)
{
    dp_sequence_free(f->s);
    dp_runtime_free(f->rt);
    cache_free(&f->c);
}

static double decode_error(fixture *f, const dp_attention_params *params, float *lse, dp_attention_stats *stats)
{
    float out[2 * DIM];
    dp_attention_stats_init(stats);
    ck_assert_int_eq(dp_decode(f->s, 0, 1, f->q, params, out, lse, stats), DP_OK);
    ck_assert_uint_eq(stats->bytes, stats->bytes_centroids + stats->bytes_means +
                                        stats->bytes_codes + stats->bytes_rows);
    return relative_error(out, f->ref, 2 * DIM);
}

/* The kept mass, exact where refined, reaches p1 of the whole; what is read grows with p1 and p2. */
START_TEST(top_p_keeps_the_mass)
{
    fixture f = open_fixture((uint64_t)_i + 1, 0.125f);
    uint64_t bytes = 0, kept = 0;
    for (int i = 1; i <= 9; i++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.refine = DP_REFINE_TOP_P;
        params.p1 = 0.1f * (float)i;
        params.p2 = 0.5f * params.p1;
        float lse[2];
        dp_attention_stats stats;
        decode_error(&f, &params, lse, &stats);
        for (int h = 0; h < 2; h++) /* estimates are not exact: allow 10 % of the mass */
            ck_assert_float_ge(lse[h], f.ref_lse[h] + logf(params.p1) - 0.1f);
        const uint64_t now_kept = stats.clusters_refined + stats.clusters_estimated;
        ck_assert_uint_ge(now_kept, kept);
        ck_assert_uint_ge(stats.bytes, bytes);
        bytes = stats.bytes;
        kept = now_kept;
    }
    close_fixture(&f);
}
END_TEST

/* A smaller budget reads more and errs less. */
START_TEST(budget_trades_bytes_for_error)
{
    fixture f = open_fixture((uint64_t)_i + 20, 0.125f);
    uint64_t bytes = 0;
    double first = 0, last = 0;
    static const float epsilons[] = {0.3f, 0.1f, 0.03f, 0.01f, 0.003f, 1e-5f, 1e-30f, 0};
    for (int i = 0; i < 8; i++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.p1 = 1;
        params.epsilon = epsilons[i];
        float lse[2];
        dp_attention_stats stats;
        last = decode_error(&f, &params, lse, &stats);
        if (i == 0) first = last;
        ck_assert_uint_ge(stats.bytes_rows, bytes);
        bytes = stats.bytes_rows;
    }
    ck_assert_double_lt(last, 5e-6);
    ck_assert_double_gt(first, 1e-3);
    close_fixture(&f);
}
END_TEST

/* One token with nearly all the mass, unlike all others: lost in a cluster's mean, found when it stands alone. */
START_TEST(needle_is_found)
{
    fixture f = open_fixture(31, 0.125f);
    const size_t needle = 4000;
    rng r = {99};
    for (int j = 0; j < DIM; j++) f.c.k[needle * DIM + j] = 3 * rng_normal(&r);
    dp_sequence_free(f.s);
    dp_sequence_config config = sequence_config(&f.c, 2, DP_F32);
    ck_assert_int_eq(dp_sequence_create(f.rt, &config, &f.s), DP_OK);
    append(f.s, &f.c, 0, TOKENS, 500);
    ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
    for (int j = 0; j < 2 * DIM; j++) f.q[j] = f.c.k[needle * DIM + j % DIM];
    reference_attention(&f.c, 2, 0.125f, 1, f.q, f.ref, f.ref_lse);
    dp_attention_params params;
    dp_attention_params_init(&params);
    float lse[2];
    dp_attention_stats stats;
    ck_assert_double_lt(decode_error(&f, &params, lse, &stats), 0.01);
    ck_assert_uint_lt(stats.bytes, stats.bytes_dense / 10);
    close_fixture(&f);
}
END_TEST

static double true_mass(const dp_step *step, const dp_head_step *h, const dp_segment *segment, uint32_t row, size_t query)
{
    const float *const key = (const float *)(const void *)segment->rows + (size_t)row * DIM;
    double logit = 0;
    for (size_t j = 0; j < DIM; j++) logit += (double)key[j] * h->q[query * DIM + j];
    return exp(logit * step->sequence->scale - h->reference[query]);
}

/* Five standard deviations of a logit's error, its key's elements being off by up to a step either way. */
static double logit_error(const dp_step *step, const dp_head_step *h, const dp_segment *segment, uint32_t cluster,
                          uint32_t row, size_t query)
{
    const float unit = dp_code_step((uint32_t)segment->code_base[cluster] << 23, segment->code_step[row]);
    double norm2 = 0;
    for (size_t j = 0; j < DIM; j++) norm2 += (double)h->q[query * DIM + j] * (double)h->q[query * DIM + j];
    return 5 * (double)(step->sequence->scale * unit) * sqrt(norm2 / 3);
}

typedef struct scan_counts {
    size_t wanted, left; /* tokens */
    size_t by_signs;     /* wanted ones of clusters whose signs were read */
    size_t missed;       /* by them */
    size_t unreached;    /* tokens of clusters that were to be looked at, but have none in reach */
    size_t lost;         /* those of them that have it all the same */
} scan_counts;

/* The largest mass of a token for any query, in units of the limit; how far the scan may be off. */
static double largest_mass(const dp_step *step, const dp_head_step *h, const dp_segment *segment, uint32_t cluster,
                           uint32_t row, double *off)
{
    double most = 0;
    *off = 0;
    for (size_t r = 0; r < 2; r++) {
        *off = fmax(*off, logit_error(step, h, segment, cluster, row, r));
        most = fmax(most, true_mass(step, h, segment, row, r) / h->token_limit[r]);
    }
    return most;
}

/* Selected clusters that the scan has passed over. */
static void check_unreached(const dp_step *step, const dp_head_step *h, scan_counts *counts)
{
    size_t position = 0, next = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        for (uint32_t c = 0; c < segment->n_clusters; c++) {
            const bool looked = (h->flags[position + c] & (SELECT_LOOK | SELECT_REFINE)) == SELECT_LOOK;
            const bool scanned = next < h->n_scanned && h->scanned[next].position == position + c;
            next += scanned;
            ck_assert(looked || !scanned);
            for (uint32_t row = segment->offset[c]; looked && !scanned && row < segment->offset[c + 1]; row++) {
                double off;
                counts->lost += largest_mass(step, h, segment, c, row, &off) > 1;
                counts->unreached++;
            }
        }
        position += (size_t)segment->n_panels * DP_PANEL;
    }
    ck_assert_uint_eq(next, h->n_scanned);
}

/* What the scan of a step found, against the tokens' own keys. Where signs chose the tokens it may miss some, and leaves the
 * others at their estimate. */
static void check_scan(void *user, const dp_step *step)
{
    const dp_head_step *const h = &step->heads[0];
    scan_counts *const counts = user;
    check_unreached(step, h, counts);
    for (size_t i = 0; i < h->n_scanned; i++) {
        const dp_cluster_ref *const ref = &h->scanned[i];
        if (!(h->flags[ref->position] & SELECT_SCAN)) continue;
        const dp_segment *const segment = &h->head->segments[ref->segment];
        double left[2] = {0}, bound[2] = {0};
        for (uint32_t row = segment->offset[ref->cluster]; row < segment->offset[ref->cluster + 1]; row++) {
            const bool wanted = h->wanted[ref->first_token + row - segment->offset[ref->cluster]];
            double off;
            const double most = largest_mass(step, h, segment, ref->cluster, row, &off);
            if (wanted && ref->keys) off = 1e-4; /* by the key itself */
            for (size_t r = 0; r < 2 && !wanted; r++) {
                const double mass = true_mass(step, h, segment, row, r);
                left[r] += mass;
                bound[r] += mass * expm1(logit_error(step, h, segment, ref->cluster, row, r));
            }
            if (wanted) ck_assert_double_gt(most, exp(-off));
            const bool missed = most > exp(off) && !wanted;
            ck_assert(!missed || ref->keys);
            ck_assert_double_lt(off, 3);
            counts->wanted += wanted;
            counts->left += !wanted;
            counts->missed += missed;
            counts->by_signs += wanted && ref->sign_groups;
        }
        for (size_t r = 0; r < 2 && !ref->keys; r++)
            ck_assert_double_le(fabs(h->mass[r * h->n_positions + ref->position] - left[r]), bound[r] + 1e-6);
    }
}

/* Keys in four bits: the tokens with much of the mass are found, the mass of the others is known, fewer bytes are read than
 * without them, and the answer is as good. */
START_TEST(codes_find_the_tokens_that_matter)
{
    fixture f = open_fixture((uint64_t)_i + 60, 0.125f);
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.p1 = 1;
    params.epsilon = 0.05f;
    for (size_t i = 0; i < 2 * DIM; i++) f.q[i] *= 2; /* few tokens with much of the mass */
    reference_attention(&f.c, 2, 0.125f, 1, f.q, f.ref, f.ref_lse);
    float out[2 * DIM], lse[2];
    dp_attention_stats with, without;
    scan_counts counts = {0};
    dp_attention_stats_init(&with);
    ck_assert_int_eq(dp_decode_observed(f.s, 0, 1, f.q, &params, out, lse, &with, check_scan, &counts), DP_OK);
    ck_assert_uint_gt(counts.left, 0);
    ck_assert_uint_gt(counts.wanted, 0);
    ck_assert_uint_gt(with.bytes_codes, 0);
    const double error = relative_error(out, f.ref, 2 * DIM);
    dp_sequence_free(f.s);
    dp_sequence_config config = sequence_config(&f.c, 2, DP_F32);
    config.key_codes = 0;
    ck_assert_int_eq(dp_sequence_create(f.rt, &config, &f.s), DP_OK);
    append(f.s, &f.c, 0, TOKENS, 500);
    ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
    ck_assert_double_lt(error, 1.5 * decode_error(&f, &params, lse, &without) + 0.02);
    ck_assert_uint_eq(without.bytes_codes, 0);
    ck_assert_uint_lt(with.bytes, without.bytes);
    close_fixture(&f);
}
END_TEST

/* Where keys are spread so wide that a cluster far from the query may have a token near it, signs find most of those. */
START_TEST(signs_find_most_of_them)
{
    fixture f = open_fixture((uint64_t)_i + 80, 0.125f);
    rng r = {(uint64_t)_i + 90};
    for (size_t i = 0; i < (size_t)TOKENS * DIM; i++) f.c.k[i] = 0.4f * (f.c.k[i] + rng_normal(&r));
    dp_sequence_free(f.s);
    const dp_sequence_config config = sequence_config(&f.c, 2, DP_F32);
    ck_assert_int_eq(dp_sequence_create(f.rt, &config, &f.s), DP_OK);
    append(f.s, &f.c, 0, TOKENS, 500);
    ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.epsilon = 0.05f;
    float out[2 * DIM], lse[2];
    scan_counts counts = {0};
    for (int query = 0; query < 64; query++) {
        make_queries(&r, &f.c, 1, 2, f.q);
        for (size_t i = 0; i < 2 * DIM; i++) f.q[i] *= 6;
        ck_assert_int_eq(dp_decode_observed(f.s, 0, 1, f.q, &params, out, lse, NULL, check_scan, &counts), DP_OK);
    }
    ck_assert_uint_gt(counts.by_signs, 50);
    ck_assert_uint_le(counts.missed, counts.by_signs / 10);
    ck_assert_uint_gt(counts.unreached, 1000);
    ck_assert_uint_le(counts.lost, counts.unreached / 1000);
    close_fixture(&f);
}
END_TEST

/* Every other token of every cluster matters: more runs of single tokens than there is work memory for, so that the last
 * clusters are read as a whole. */
START_TEST(single_tokens_without_end)
{
    enum { TOKENS = 40000, DIM = 64, GROUPS = 50 };
    rng r = {73};
    cache c = cache_create(&r, TOKENS, 1, DIM, DIM, DP_BF16);
    for (size_t t = 0; t < TOKENS; t++) /* the first element, that the query asks for, is small beside the others */
        for (size_t d = 0; d < DIM; d++)
            c.k[t * DIM + d] = d == 0 ? (t % 2 ? -0.4f : 0.4f)
                                      : 0.25f * (float)((int)((t / 2 * 7919 % GROUPS * 31 + d * 17) % 13) - 6) +
                                            0.46f * rng_normal(&r);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 1, DP_BF16);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, TOKENS, 1000);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    const float q[DIM] = {60};
    float out[DIM], exact[DIM];
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.p1 = 1;
    params.epsilon = 5e-4f;
    dp_attention_stats stats;
    dp_attention_stats_init(&stats);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, &params, out, NULL, &stats), DP_OK);
    params.method = DP_DENSE;
    ck_assert_int_eq(dp_decode(s, 0, 1, q, &params, exact, NULL, NULL), DP_OK);
    ck_assert_uint_gt(stats.tokens_refined, TOKENS / 2 + TOKENS / 50); /* of the last clusters all */
    ck_assert_uint_lt(stats.tokens_refined, TOKENS * 9 / 10);
    double error = 0, norm = 0;
    for (int d = 0; d < DIM; d++) error += pow(out[d] - exact[d], 2), norm += pow(exact[d], 2);
    ck_assert_msg(error < 25e-4 * norm, "error %g", sqrt(error / norm));
    dp_sequence_free(s);
    runtime_end(rt);
    cache_free(&c);
}
END_TEST

START_TEST(longer_sink_and_window_are_exact)
{
    fixture f = open_fixture(41, 0.125f);
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.p1 = 0;
    params.epsilon = 1;
    float lse[2];
    dp_attention_stats none, forced;
    decode_error(&f, &params, lse, &none);
    ck_assert_uint_eq(none.tokens_refined, 0);
    params.sink = 100;
    params.window = 600;
    decode_error(&f, &params, lse, &forced);
    ck_assert_uint_ge(forced.tokens_refined, 96 + 536);
    params.sink = params.window = UINT32_MAX;
    const double error = decode_error(&f, &params, lse, &forced);
    ck_assert_uint_eq(forced.tokens_refined, TOKENS - 68);
    ck_assert_double_lt(error, 5e-6);
    close_fixture(&f);
}
END_TEST

START_TEST(options_do_what_they_say)
{
    fixture f = open_fixture(51, 0);
    dp_attention_params params;
    dp_attention_stats stats, more;
    float lse[2], with[2];
    dp_attention_params_init_paper(&params);
    decode_error(&f, &params, lse, &stats);
    ck_assert_int_eq(stats.sparse, 1);

    params.p1 = 0.5f; /* the dropped half stays in the denominator: a larger log-sum-exp, near the true one */
    params.p2 = 0.2f;
    decode_error(&f, &params, lse, &stats);
    params.keep_dropped = 1;
    decode_error(&f, &params, with, &stats);
    for (int h = 0; h < 2; h++) {
        ck_assert_float_gt(with[h], lse[h] + 0.2f);
        ck_assert_float_eq_tol(with[h], f.ref_lse[h], 0.25f);
    }

    dp_attention_params_init(&params);
    params.p1 = 0;
    params.epsilon = 1;
    params.min_clusters = 20;
    decode_error(&f, &params, lse, &more);
    ck_assert_uint_ge(more.clusters_refined, 20);
    ck_assert_uint_le(more.clusters_refined, 45); /* two query heads' union, ties included */
    params.min_clusters = UINT32_MAX;
    decode_error(&f, &params, lse, &more);
    ck_assert_uint_eq(more.clusters_refined, more.clusters);

    dp_attention_params_init(&params);
    ck_assert_int_eq(dp_sequence_set_dense(f.s, 0, 1), DP_OK);
    ck_assert_double_lt(decode_error(&f, &params, lse, &stats), 5e-6);
    ck_assert_int_eq(stats.sparse, 0);
    ck_assert_int_eq(dp_sequence_set_dense(f.s, 0, 0), DP_OK);
    params.min_context = TOKENS + 1;
    decode_error(&f, &params, lse, &stats);
    ck_assert_int_eq(stats.sparse, 0);
    params.min_context = TOKENS;
    decode_error(&f, &params, lse, &stats);
    ck_assert_int_eq(stats.sparse, 1);
    close_fixture(&f);
}
END_TEST

/* Values are their keys, rotated, and noise. */
static cache rotated_cache(rng *r)
{
    cache c = cache_create(r, TOKENS, 1, DIM, DIM, DP_F32);
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t j = 0; j < DIM; j++) c.v[t * DIM + j] = 0.3f * c.k[t * DIM + (j + 5) % DIM] + 0.02f * rng_normal(r);
    return c;
}

/* Values that go with their keys move a cluster's weighted mean value as the query moves: alike in all clusters, so that
 * only the slope sees it. Outliers apart, nothing is read token by token here. */
START_TEST(slope_follows_the_query)
{
    rng r = {77};
    cache c = rotated_cache(&r);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 2, DP_F32);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    float q[2 * DIM], ref[2 * DIM], lse[2], out[2][2 * DIM], asked[10 * 2 * DIM];
    for (size_t i = 0; i < 10 * 2 * DIM; i++) asked[i] = 0.2f * rng_normal(&r);
    if (_i) ck_assert_int_eq(dp_observe_queries(s, 0, 10, asked), DP_OK);
    append(s, &c, 0, TOKENS, 500);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    for (size_t i = 0; i < 2 * DIM; i++) q[i] = 0.3f * rng_normal(&r);
    reference_attention(&c, 2, 0.125f, 1, q, ref, lse);
    dp_attention_stats stats[2];
    for (int slope = 0; slope < 2; slope++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.p1 = 1;
        params.epsilon = 1;
        params.slope = slope;
        dp_attention_stats_init(&stats[slope]);
        ck_assert_int_eq(dp_decode(s, 0, 1, q, &params, out[slope], NULL, &stats[slope]), DP_OK);
        ck_assert_uint_eq(stats[slope].clusters_refined, 0);
    }
    const double without = relative_error(out[0], ref, 2 * DIM), with = relative_error(out[1], ref, 2 * DIM);
    ck_assert_double_lt(with, 0.5 * without);
    ck_assert_uint_eq(stats[1].bytes - stats[0].bytes, DIM * (DIM + sizeof(float))); /* of the one segment */
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Logits of several times the soft cap: masses are estimated as well as without, and mean values that go with their keys
 * do not run away with the query, although it moves the uncapped logits far. Little is read token by token. */
START_TEST(soft_cap_bites)
{
    static const float caps[] = {10, 5};
    const float cap = caps[_i];
    rng r = {79};
    cache c = rotated_cache(&r);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 2, DP_F32);
    config.softcap = cap;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    static float q[64 * 2 * DIM], out[2 * DIM], ref[2 * DIM];
    float lse[2], ref_lse[2], uncapped[2];
    make_queries(&r, &c, 64, 2, q);
    ck_assert_int_eq(dp_observe_queries(s, 0, 64, q), DP_OK);
    append(s, &c, 0, TOKENS, 500);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    for (int i = 0; i < 4; i++) {
        make_queries(&r, &c, 1, 2, q);
        reference_attention(&c, 2, 0.125f, 1, q, ref, uncapped);
        reference_capped_attention(&c, 2, 0.125f, cap, 1, q, ref, ref_lse);
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.p1 = 0.98f;
        dp_attention_stats stats;
        dp_attention_stats_init(&stats);
        ck_assert_int_eq(dp_decode(s, 0, 1, q, &params, out, lse, &stats), DP_OK);
        ck_assert_double_lt(relative_error(out, ref, 2 * DIM), 0.006); /* 0.01 if the slope were as without a cap */
        ck_assert_double_lt((double)stats.bytes, 0.03 * (double)stats.bytes_dense);
        for (int h = 0; h < 2; h++) { /* 0.02 of the mass are dropped */
            ck_assert_float_gt(uncapped[h], 1.5f * cap);
            ck_assert_float_gt(lse[h], ref_lse[h] - 0.025f);
            ck_assert_float_lt(lse[h], ref_lse[h] + 0.01f); /* 0.04 if the dispersion were as without a cap */
        }
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("selection");
    TCase *const tc = tcase_create("selection"), *const slow = slow_cases(suite);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, top_p_keeps_the_mass, 0, 4);
    tcase_add_loop_test(tc, budget_trades_bytes_for_error, 0, 1);
    tcase_add_loop_test(slow, budget_trades_bytes_for_error, 1, 4);
    tcase_add_test(tc, needle_is_found);
    tcase_add_loop_test(tc, codes_find_the_tokens_that_matter, 0, 1);
    tcase_add_test(tc, signs_find_most_of_them);
    tcase_add_loop_test(slow, codes_find_the_tokens_that_matter, 1, 3);
    tcase_add_test(tc, single_tokens_without_end);
    tcase_add_test(tc, longer_sink_and_window_are_exact);
    tcase_add_test(tc, options_do_what_they_say);
    tcase_add_loop_test(tc, slope_follows_the_query, 0, 2);
    tcase_add_loop_test(tc, soft_cap_bites, 0, 2);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
