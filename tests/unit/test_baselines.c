/* The methods that Double-P is compared with, each against its definition in double precision, and the measures that
 * all methods are judged by. */
#include <stdio.h>

#include "baselines.h"
#include "clusters.h"
#include "pages.h"
#include "quantised.h"
#include "select.h"
#include "truth.h"

/* Whether `kept` is the smallest set of tokens that holds p of the weights, with the sink and all from `end` on. */
static void check_smallest(const double *weights, size_t n, size_t end, const uint8_t *kept, double p)
{
    double mass = 0, least = INFINITY;
    for (size_t t = 0; t < n; t++) {
        if (!kept[t])
            continue;
        mass += weights[t];
        if (t >= SINK && t < end)
            least = fmin(least, weights[t]);
    }
    ck_assert_msg(mass > p - 1e-5, "%g is less than %g", mass, p);
    if (isinf(least)) /* nothing had to be chosen */
        return;
    ck_assert_msg(mass - least < p + 1e-5, "%g without %g is still enough", mass - least, least);
    for (size_t t = 0; t < n; t++)
        ck_assert_msg(kept[t] || weights[t] <= least * (1 + 1e-5), "token %zu weighs more than what was chosen", t);
}

START_TEST(oracle_keeps_the_smallest_set)
{
    fixture f = fixture_create(DP_F32, 1, ALL);
    static const double shares[] = {0.5, 0.9, 0.99};
    uint8_t kept[KV_HEADS * ALL];
    double weights[ALL], mass[16];
    float out[16 * VALUE_DIM];
    truth *const t = truth_create(f.cache);
    for (size_t i = 0; i < 3; i++) {
        char text[32];
        snprintf(text, sizeof(text), "p=%g", shares[i]);
        void *const state = create(&method_oracle, &f, text);
        const method_report report = attend(&method_oracle, state, &f);
        mark(&method_oracle, state, kept);
        ck_assert(truth_attend(t, 0, f.q, kept, ALL, out, mass));
        size_t n = 0;
        for (size_t h = 0; h < f.n_heads; h++) {
            true_logits(&f, h, ALL, weights);
            softmax(weights, ALL);
            check_smallest(weights, ALL, ALL - WINDOW, kept + h * ALL, shares[i]);
            double sum = 0;
            for (size_t j = 0; j < ALL; j++) {
                sum += kept[h * ALL + j] ? weights[j] : 0;
                n += kept[h * ALL + j];
            }
            ck_assert_double_eq_tol(mass[h], sum, 1e-6);
        }
        ck_assert_uint_eq(report.bytes_index, 0);
        ck_assert_uint_eq(report.bytes_rows, n * (KEY_DIM + VALUE_DIM) * sizeof(float));
        dense(&f, ALL);
        ck_assert(relative_error(out, f.want, f.n_heads * VALUE_DIM) < 2e-6);
        method_oracle.free(state);
    }
    truth_free(t);
    fixture_free(&f);
}
END_TEST

START_TEST(quest_bounds_are_bounds)
{
    fixture f = fixture_create((dp_type)_i, 2, PROMPT);
    const uint32_t page = 16;
    page_index *const pages = pages_create(f.cache, page, SINK, WINDOW);
    ck_assert_ptr_nonnull(pages);
    for (size_t t = PROMPT; t < ALL; t++) { /* pages that close while decoding are pages, too */
        ck_assert(method_cache_append(f.cache, 0, 1, f.rows.k + t * KV_HEADS * KEY_DIM, KV_HEADS * KEY_DIM,
                                      f.rows.v + t * KV_HEADS * VALUE_DIM, KV_HEADS * VALUE_DIM));
        pages_update(pages, 0);
    }
    const size_t n = pages_count(pages, 0);
    ck_assert_uint_eq(n, (ALL - SINK - WINDOW) / page);
    ck_assert_uint_eq(pages_first(pages, 0), SINK);
    ck_assert_uint_eq(pages_end(pages, 0), SINK + n * page);
    ck_assert_uint_eq(pages_bytes(pages, 0), n * KV_HEADS * 2 * KEY_DIM * 2);
    pages_choose(pages, 0, f.q, 0.25f);
    double logits[ALL];
    size_t stride;
    for (size_t h = 0; h < f.n_heads; h++) {
        const float *const bounds = pages_bounds(pages, (uint32_t)h / 2, &stride) + h % 2 * stride;
        const uint8_t *const chosen = pages_chosen(pages, (uint32_t)h / 2);
        size_t higher = 0;
        true_logits(&f, h, ALL, logits);
        for (size_t i = 0; i < n; i++) {
            double least = -INFINITY, sharp = 0;
            for (size_t t = SINK + i * page; t < SINK + (i + 1) * page; t++)
                least = fmax(least, logits[t]);
            for (size_t j = 0; j < KEY_DIM; j++) {
                double best = -INFINITY;
                for (size_t t = SINK + i * page; t < SINK + (i + 1) * page; t++)
                    best = fmax(best, (double)f.q[h * KEY_DIM + j] *
                                          (double)f.rows.k[(t * KV_HEADS + h / 2) * KEY_DIM + j]);
                sharp += best / sqrt(KEY_DIM);
            }
            ck_assert_double_ge((double)bounds[i], least - 1e-5);
            ck_assert_double_ge((double)bounds[i], sharp - 1e-4);
            ck_assert_double_le((double)bounds[i], sharp + 0.02 * fabs(sharp) + 0.1); /* bf16 rounds outwards */
            if (!chosen[i]) /* those above an unchosen page were chosen: fewer than the share */
                for (size_t j = higher = 0; j < n; j++)
                    higher += bounds[j] >= bounds[i];
            ck_assert(chosen[i] || higher > select_count(0.25f, n));
        }
    }
    pages_free(pages);
    fixture_free(&f);
}
END_TEST

START_TEST(quest_reads_its_share)
{
    fixture f = fixture_create(DP_BF16, 1, ALL);
    void *const state = create(&method_quest, &f, "share=0.1");
    const method_report report = attend(&method_quest, state, &f);
    const size_t pages = (ALL - SINK - WINDOW) / 16, chosen = (size_t)lround(0.1 * (double)pages);
    const size_t tokens = chosen * 16 + ALL - pages * 16;
    ck_assert_uint_eq(report.bytes_rows, KV_HEADS * tokens * (KEY_DIM + VALUE_DIM) * 2);
    ck_assert_uint_eq(report.bytes_index, KV_HEADS * pages * 2 * KEY_DIM * 2);
    uint8_t kept[KV_HEADS * ALL];
    size_t n = 0;
    mark(&method_quest, state, kept);
    for (size_t i = 0; i < sizeof(kept); i++)
        n += kept[i];
    ck_assert_uint_eq(n, KV_HEADS * tokens);

    /* Its output is dense attention over those tokens. */
    double weights[ALL];
    for (size_t h = 0; h < f.n_heads; h++) {
        double sum = 0, want[VALUE_DIM] = {0};
        true_logits(&f, h, ALL, weights);
        softmax(weights, ALL);
        for (size_t t = 0; t < ALL; t++) {
            weights[t] *= kept[h * ALL + t];
            sum += weights[t];
            for (size_t j = 0; j < VALUE_DIM; j++)
                want[j] += weights[t] * (double)f.rows.v[(t * KV_HEADS + h) * VALUE_DIM + j];
        }
        for (size_t j = 0; j < VALUE_DIM; j++)
            ck_assert_double_eq_tol((double)f.out[h * VALUE_DIM + j], want[j] / sum, 1e-5);
    }
    method_quest.free(state);
    fixture_free(&f);
}
END_TEST

START_TEST(four_bit_keys)
{
    fixture f = fixture_create((dp_type)_i, 2, ALL);
    quantised_keys *const keys = quantised_create(f.cache);
    ck_assert_ptr_nonnull(keys);
    uint32_t index[ALL];
    static float got[2 * ALL];
    double want[ALL];
    for (uint32_t t = 0; t < ALL; t++)
        index[t] = ALL - 1 - t;
    for (uint32_t h = 0; h < KV_HEADS; h++) {
        quantised_logits(keys, 0, h, f.q + h * 2 * KEY_DIM, index, ALL, got, ALL);
        for (size_t r = 0; r < 2; r++) {
            const float *const q = f.q + (h * 2 + r) * KEY_DIM;
            double length = 0;
            for (size_t j = 0; j < KEY_DIM; j++)
                length += fabs((double)q[j]) / sqrt(KEY_DIM);
            true_logits(&f, h * 2 + r, ALL, want);
            for (size_t i = 0; i < ALL; i++) {
                const float *const k = f.rows.k + (index[i] * KV_HEADS + h) * KEY_DIM;
                double low = INFINITY, high = -INFINITY;
                for (size_t j = 0; j < KEY_DIM; j++) {
                    low = fmin(low, (double)k[j]);
                    high = fmax(high, (double)k[j]);
                }
                /* Half a step of rounding, and what bf16 does to the minimum and to fifteen steps. */
                const double bound = length * ((high - low) / 30 + fabs(low) / 256 + (high - low) / 256);
                ck_assert_double_eq_tol((double)got[r * ALL + i], want[index[i]], bound * 1.05 + 1e-5);
            }
        }
    }
    quantised_free(keys);
    fixture_free(&f);
}
END_TEST

START_TEST(twilight_keeps_the_smallest_set_of_estimates)
{
    fixture f = fixture_create(DP_BF16, 1, ALL);
    quantised_keys *const keys = quantised_create(f.cache);
    void *const state = create(&method_quest_twilight, &f, "share=1:p=0.8");
    const method_report report = attend(&method_quest_twilight, state, &f);
    uint8_t kept[KV_HEADS * ALL];
    uint32_t index[ALL];
    float logits[ALL];
    double weights[ALL];
    size_t n = 0;
    mark(&method_quest_twilight, state, kept);
    for (uint32_t h = 0; h < KV_HEADS; h++) {
        for (uint32_t t = 0; t < ALL; t++)
            index[t] = t;
        quantised_logits(keys, 0, h, f.q + h * KEY_DIM, index, ALL, logits, ALL);
        for (size_t t = 0; t < ALL; t++) {
            weights[t] = (double)logits[t];
            n += kept[h * ALL + t];
        }
        softmax(weights, ALL);
        const size_t end = ALL - WINDOW - (ALL - SINK - WINDOW) % 16; /* before the window, but in no page yet */
        for (size_t t = 0; t < ALL; t++)
            ck_assert(kept[h * ALL + t] || (t >= SINK && t < end));
        check_smallest(weights, ALL, end, kept + h * ALL, 0.8);
    }
    const size_t pages = (ALL - SINK - WINDOW) / 16;
    ck_assert_uint_lt(n, KV_HEADS * ALL);
    ck_assert_uint_eq(report.bytes_rows, n * (KEY_DIM + VALUE_DIM) * 2);
    ck_assert_uint_eq(report.bytes_index, KV_HEADS * (pages * 2 * KEY_DIM * 2 + ALL * (KEY_DIM / 2 + 4)));
    method_quest_twilight.free(state);
    quantised_free(keys);
    fixture_free(&f);
}
END_TEST

static double bf16_at(const uint16_t *x, size_t i)
{
    const uint32_t bits = (uint32_t)x[i] << 16;
    float y;
    memcpy(&y, &bits, sizeof(y));
    return (double)y;
}

START_TEST(clusters_are_a_partition)
{
    fixture f = fixture_create(DP_BF16, 1, ALL);
    cluster_segment s;
    ck_assert(cluster_segment_create(&s, f.cache, 0, 1, SINK, ALL - SINK - WINDOW, 16, 8));
    uint8_t seen[ALL] = {0};
    ck_assert_uint_le(s.n_clusters, (ALL - SINK - WINDOW + 15) / 16);
    ck_assert_uint_eq(s.offset[0], 0);
    ck_assert_uint_eq(s.offset[s.n_clusters], ALL - SINK - WINDOW);
    for (uint32_t c = 0; c < s.n_clusters; c++) {
        const uint32_t size = s.offset[c + 1] - s.offset[c];
        double key[KEY_DIM] = {0}, value[VALUE_DIM] = {0};
        ck_assert_uint_gt(size, 0);
        for (uint32_t i = s.offset[c]; i < s.offset[c + 1]; i++) {
            const uint32_t t = s.token[i];
            ck_assert(t >= SINK && t < ALL - WINDOW && !seen[t]);
            seen[t] = 1;
            ck_assert_mem_eq(s.k + i * KEY_DIM * 2, method_cache_keys(f.cache, 0, 1) + t * KEY_DIM * 2, KEY_DIM * 2);
            ck_assert_mem_eq(s.v + i * VALUE_DIM * 2, method_cache_values(f.cache, 0, 1) + t * VALUE_DIM * 2, VALUE_DIM * 2);
            for (size_t j = 0; j < KEY_DIM; j++)
                key[j] += ((double)f.rows.k[(t * KV_HEADS + 1) * KEY_DIM + j] - (double)s.mean_key[j]) / size;
            for (size_t j = 0; j < VALUE_DIM; j++)
                value[j] += (double)f.rows.v[(t * KV_HEADS + 1) * VALUE_DIM + j] / size;
        }
        for (size_t j = 0; j < KEY_DIM; j++)
            ck_assert_double_eq_tol(bf16_at(s.centroids, c * KEY_DIM + j), key[j], fabs(key[j]) / 128 + 1e-4);
        for (size_t j = 0; j < VALUE_DIM; j++)
            ck_assert_double_eq_tol(bf16_at(s.mean_values, c * VALUE_DIM + j), value[j], fabs(value[j]) / 128 + 1e-4);
    }
    cluster_segment_free(&s);
    fixture_free(&f);
}
END_TEST

/* RetroInfer from its definition: the choice of a KV head from its clusters, then the output. */
START_TEST(retroinfer_is_its_definition)
{
    enum { GROUP = 3, MOST = ALL };
    static const float exact_share = 0.1f, estimated_share = 0.3f;
    fixture f = fixture_create(DP_BF16, GROUP, ALL);
    void *const state = create(&method_retroinfer, &f, "exact=0.1:estimated=0.3");
    const method_report report = attend(&method_retroinfer, state, &f);
    uint8_t kept[KV_HEADS * ALL];
    mark(&method_retroinfer, state, kept);
    uint64_t bytes_index = 0, bytes_rows = 0;
    for (uint32_t h = 0; h < KV_HEADS; h++) {
        cluster_segment s;
        double logits[GROUP][MOST], soft[MOST], score[MOST] = {0};
        ck_assert(cluster_segment_create(&s, f.cache, 0, h, SINK, ALL - SINK - WINDOW, 16, 8));
        const size_t n = s.n_clusters, n_exact = (size_t)lround((double)exact_share * (double)n);
        const size_t n_used = (size_t)lround((double)(exact_share + estimated_share) * (double)n);
        for (size_t r = 0; r < GROUP; r++) {
            for (size_t c = 0; c < n; c++) {
                logits[r][c] = 0;
                for (size_t j = 0; j < KEY_DIM; j++)
                    logits[r][c] += (double)f.q[(h * GROUP + r) * KEY_DIM + j] *
                                    (bf16_at(s.centroids, c * KEY_DIM + j) + (double)s.mean_key[j]) / sqrt(KEY_DIM);
                soft[c] = logits[r][c];
            }
            softmax(soft, n);
            for (size_t c = 0; c < n; c++)
                score[c] += soft[c];
        }
        /* How many clusters are before this one says what becomes of it. */
        uint8_t use[MOST];
        for (size_t c = 0; c < n; c++) {
            size_t before = 0;
            for (size_t i = 0; i < n; i++)
                before += score[i] > score[c];
            use[c] = before < n_exact ? 2 : before < n_used ? 1 : 0;
        }
        bool exact_token[ALL];
        for (size_t t = 0; t < ALL; t++)
            exact_token[t] = t < SINK || t >= ALL - WINDOW;
        for (size_t c = 0; c < n; c++)
            for (uint32_t i = s.offset[c]; i < s.offset[c + 1]; i++) {
                exact_token[s.token[i]] = use[c] == 2;
                ck_assert_uint_eq(kept[h * ALL + s.token[i]], use[c] > 0);
            }
        for (size_t r = 0; r < GROUP; r++) {
            double token_logits[ALL], want[VALUE_DIM] = {0}, sum = 0;
            true_logits(&f, h * GROUP + r, ALL, token_logits);
            for (size_t t = 0; t < ALL; t++)
                for (size_t j = 0; exact_token[t] && j <= VALUE_DIM; j++) {
                    const double w = exp(token_logits[t]);
                    if (j == VALUE_DIM)
                        sum += w;
                    else
                        want[j] += w * (double)f.rows.v[(t * KV_HEADS + h) * VALUE_DIM + j];
                }
            for (size_t c = 0; c < n; c++) {
                const double w = use[c] == 1 ? exp(logits[r][c]) * (s.offset[c + 1] - s.offset[c]) : 0;
                sum += w;
                for (size_t j = 0; j < VALUE_DIM; j++)
                    want[j] += w * bf16_at(s.mean_values, c * VALUE_DIM + j);
            }
            for (size_t j = 0; j < VALUE_DIM; j++)
                ck_assert_double_eq_tol((double)f.out[(h * GROUP + r) * VALUE_DIM + j], want[j] / sum, 2e-5);
        }
        bytes_index += n * (KEY_DIM * 2 + 4) + KEY_DIM * 4 + (n_used - n_exact) * VALUE_DIM * 2;
        for (size_t t = 0; t < ALL; t++)
            bytes_rows += exact_token[t] ? (KEY_DIM + VALUE_DIM) * 2 : 0;
        cluster_segment_free(&s);
    }
    ck_assert_uint_eq(report.bytes_index, bytes_index);
    ck_assert_uint_eq(report.bytes_rows, bytes_rows);
    method_retroinfer.free(state);
    fixture_free(&f);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("baselines");
    TCase *const cases = tcase_create("baselines");
    tcase_set_timeout(cases, 120);
    tcase_add_test(cases, oracle_keeps_the_smallest_set);
    tcase_add_loop_test(cases, quest_bounds_are_bounds, 0, DP_TYPE_COUNT);
    tcase_add_test(cases, quest_reads_its_share);
    tcase_add_loop_test(cases, four_bit_keys, 0, DP_TYPE_COUNT);
    tcase_add_test(cases, twilight_keeps_the_smallest_set_of_estimates);
    tcase_add_test(cases, clusters_are_a_partition);
    tcase_add_test(cases, retroinfer_is_its_definition);
    suite_add_tcase(suite, cases);
    return run_suite(suite);
}
