/* eval_parts.c: what `doublep eval` computes with: divergence, quantiles, sums that are saved and read back. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../suite.h"
#include "eval_logits.h"
#include "eval_methods.h"
#include "eval_result.h"

START_TEST(divergence_is_its_definition)
{
    enum { N = 50 };
    float a[N], b[N];
    double p[N], q[N], sum_p = 0, sum_q = 0, kl = 0, nll, dense_nll;
    unsigned state = 3;
    for (size_t i = 0; i < N; i++) {
        state = state * 1103515245 + 12345;
        a[i] = (float)(state >> 16 & 0x3ff) / 100;
        state = state * 1103515245 + 12345;
        b[i] = a[i] + (float)(state >> 16 & 0xff) / 100;
        sum_p += p[i] = exp((double)a[i]);
        sum_q += q[i] = exp((double)b[i]);
    }
    for (size_t i = 0; i < N; i++)
        kl += p[i] / sum_p * log(p[i] / sum_p / (q[i] / sum_q));
    ck_assert_double_eq_tol(eval_divergence(a, b, N, 7, &nll, &dense_nll), kl, 1e-12);
    ck_assert_double_eq_tol(nll, -log(q[7] / sum_q), 1e-12);
    ck_assert_double_eq_tol(dense_nll, -log(p[7] / sum_p), 1e-12);
    for (size_t i = 0; i < N; i++)
        b[i] = a[i] + 500; /* the same distribution */
    ck_assert_double_eq_tol(eval_divergence(a, b, N, 0, &nll, &dense_nll), 0, 1e-6);
    b[3] = NAN;
    ck_assert(isnan(eval_divergence(a, b, N, 0, &nll, &dense_nll)));
}
END_TEST

START_TEST(quantiles)
{
    static eval_histogram h;
    ck_assert_double_eq(eval_histogram_quantile(&h, 0.99), 0);
    memset(&h, 0, sizeof(h));
    for (int i = 1; i <= 1000; i++)
        eval_histogram_add(&h, i / 1000.0);
    ck_assert_double_eq_tol(eval_histogram_quantile(&h, 0.5), 0.5, 0.5 * 0.03);
    ck_assert_double_eq_tol(eval_histogram_quantile(&h, 0.99), 0.99, 0.99 * 0.03);
    memset(&h, 0, sizeof(h));
    for (int i = 0; i < 99; i++)
        eval_histogram_add(&h, 0);
    eval_histogram_add(&h, 1e9);
    ck_assert_double_eq(eval_histogram_quantile(&h, 0.99), 0);
    ck_assert_double_gt(eval_histogram_quantile(&h, 0.999), 15);
    eval_histogram_add(&h, NAN); /* counts as the worst */
    ck_assert_double_gt(eval_histogram_quantile(&h, 0.99), 15);
}
END_TEST

/* Every number of the result differs, and one is not finite. */
static eval_result some_result(double start, size_t n_positions)
{
    eval_result r = {.prompts = 1, .answers_equal = 1, .answer_tokens = 9, .tokens_equal = 8, .kl_tokens = 9};
    r.kl_sum = start / 3;
    r.kl_max = start * 2;
    r.error_max = NAN;
    r.bytes_rows = start + 0.1;
    for (int i = 0; i < 10; i++) {
        eval_histogram_add(&r.error, start * i);
        eval_histogram_add(&r.lost, start / (i + 1));
    }
    ck_assert(eval_result_reserve(&r, n_positions));
    for (size_t i = 0; i < n_positions; i++)
        r.positions[i] = (eval_position){.count = 1, .kl = start / (double)(i + 7), .error = start * (double)i};
    return r;
}

START_TEST(results_are_saved_bit_by_bit)
{
    eval_result a = some_result(0.123456789012345678, 5), b;
    json_t *const saved = eval_result_save(&a);
    char *const text = json_dumps(saved, JSON_REAL_PRECISION(17));
    json_t *const read = json_loads(text, 0, NULL);
    ck_assert(eval_result_load(&b, read));
    ck_assert_double_eq(a.kl_sum, b.kl_sum);
    ck_assert_double_eq(a.bytes_rows, b.bytes_rows);
    ck_assert(isnan(b.error_max));
    ck_assert_mem_eq(&a.error, &b.error, sizeof(a.error));
    ck_assert_mem_eq(&a.lost, &b.lost, sizeof(a.lost));
    ck_assert_uint_eq(b.n_positions, 5);
    ck_assert_mem_eq(a.positions, b.positions, 5 * sizeof(*a.positions));
    eval_result_free(&b);
    json_object_del(read, "kl_sum"); /* a line of another version */
    ck_assert(!eval_result_load(&b, read));
    eval_result_free(&b);
    eval_result_free(&a);
    json_decref(saved);
    json_decref(read);
    free(text);
}
END_TEST

START_TEST(results_add_up)
{
    eval_result sum = {0}, a = some_result(0.5, 3), b = some_result(0.25, 6);
    ck_assert(eval_result_add(&sum, &a) && eval_result_add(&sum, &b));
    ck_assert_double_eq(sum.prompts, 2);
    ck_assert_double_eq(sum.kl_sum, a.kl_sum + b.kl_sum);
    ck_assert_double_eq(sum.kl_max, a.kl_max);
    ck_assert(isnan(sum.error_max));
    ck_assert_uint_eq(sum.n_positions, 6);
    ck_assert_double_eq(sum.positions[2].count, 2);
    ck_assert_double_eq(sum.positions[2].kl, a.positions[2].kl + b.positions[2].kl);
    ck_assert_double_eq(sum.positions[5].count, 1);
    json_t *const figures = eval_result_figures(&sum);
    ck_assert_double_eq(json_number_value(json_object_get(figures, "tokens_equal")), 16.0 / 18);
    ck_assert(json_is_null(json_object_get(figures, "rel_error_max")));
    json_decref(figures);
    eval_result_free(&sum);
    eval_result_free(&a);
    eval_result_free(&b);
}
END_TEST

START_TEST(method_lists)
{
    eval_methods m = {0};
    char error[400] = "";
    ck_assert(eval_methods_add(&m, "dense,quest:share=0.03,quest:share=0.060", error, sizeof(error)));
    ck_assert(eval_methods_add(&m, "quest,retroinfer:estimated=0.1:exact=0.01", error, sizeof(error)));
    ck_assert_uint_eq(m.count, 4); /* quest and quest:share=0.060 are the same */
    ck_assert_str_eq(m.list[1].label, "quest:share=0.03");
    ck_assert_str_eq(m.list[2].label, "quest");
    ck_assert_str_eq(m.list[3].label, "retroinfer:exact=0.01:estimated=0.1");
    json_t *const params = eval_method_params(&m.list[1]);
    ck_assert_double_eq(json_number_value(json_object_get(params, "share")), 0.03);
    ck_assert_int_eq(json_integer_value(json_object_get(params, "page")), 16);
    json_decref(params);
    static const char *const wrong[] = {"", ",", "dense,", "dense:", "dense:p=1", "quest:", "quest:share", "Quest"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        ck_assert_msg(!eval_methods_add(&m, wrong[i], error, sizeof(error)), "\"%s\"", wrong[i]);
    eval_methods_free(&m);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("eval parts");
    TCase *const cases = tcase_create("eval parts");
    tcase_add_test(cases, divergence_is_its_definition);
    tcase_add_test(cases, quantiles);
    tcase_add_test(cases, results_are_saved_bit_by_bit);
    tcase_add_test(cases, results_add_up);
    tcase_add_test(cases, method_lists);
    suite_add_tcase(suite, cases);
    return run_suite(suite);
}
