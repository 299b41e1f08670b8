/* helpers.c: the small parts of the command: cutting text at whole characters, choosing the next token, rotation, rows,
 * files of prompts, products. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <check.h>

#include "linear.h"
#include "prompts.h"
#include "rope.h"
#include "rows.h"
#include "sampler.h"
#include "utf8.h"

static const struct {
    const char *text;
    size_t whole; /* bytes that may go out */
    const char *valid;
} texts[] = {
    {"", 0, ""},
    {"abc", 3, "abc"},
    {"ab\xc3", 2, "ab\xef\xbf\xbd"},                     /* half of a two-byte character */
    {"ab\xc3\xa9", 4, "ab\xc3\xa9"},
    {"\xe2\x82", 0, "\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xe2\x82\xac", 3, "\xe2\x82\xac"},
    {"\xf0\x9f\x98", 0, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xf0\x9f\x98\x80", 4, "\xf0\x9f\x98\x80"},
    {"a\xff", 2, "a\xef\xbf\xbd"},                       /* never a character: does not hold anything up */
    {"a\x80\x80", 3, "a\xef\xbf\xbd\xef\xbf\xbd"},       /* nor do stray continuation bytes */
    {"\xc0\xaf", 2, "\xef\xbf\xbd\xef\xbf\xbd"},         /* overlong */
    {"\xe0\x9f", 2, "\xef\xbf\xbd\xef\xbf\xbd"},         /* overlong, cut */
    {"\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* surrogate */
    {"\xf4\x90\x80\x80", 4, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* past U+10FFFF */
};

START_TEST(text_goes_out_in_whole_characters)
{
    const size_t length = strlen(texts[_i].text);
    ck_assert_uint_eq(utf8_whole(texts[_i].text, length), texts[_i].whole);
    char *const valid = utf8_valid_copy(texts[_i].text, length);
    ck_assert_str_eq(valid, texts[_i].valid);
    free(valid);
}
END_TEST

START_TEST(greedy_takes_the_first_of_the_largest)
{
    sampler greedy = {0};
    ck_assert_int_eq(sampler_next(&greedy, (const float[]){-3, 2, 2, 1}, 4), 1);
    ck_assert_int_eq(sampler_next(&greedy, (const float[]){-INFINITY, -5}, 2), 1);
    ck_assert_int_eq(sampler_next(&greedy, (const float[]){1, NAN, 2}, 3), -1);
    ck_assert_int_eq(sampler_next(&greedy, (const float[]){1, INFINITY}, 2), -1);
    ck_assert_int_eq(sampler_next(&greedy, (const float[]){-INFINITY}, 1), -1);
}
END_TEST

START_TEST(samples_follow_the_softmax)
{
    enum { N = 200000 };
    const float logits[] = {0, 1, -1, 2};
    const double temperature = 1.5;
    double weights[4], total = 0;
    for (size_t i = 0; i < 4; i++)
        total += weights[i] = exp((double)logits[i] / temperature);
    sampler s = {.temperature = temperature, .state = 12345}, again = s;
    size_t counts[4] = {0};
    for (size_t i = 0; i < N; i++) {
        const int32_t id = sampler_next(&s, logits, 4);
        ck_assert_int_eq(id, sampler_next(&again, logits, 4));
        counts[id]++;
    }
    for (size_t i = 0; i < 4; i++) {
        const double p = weights[i] / total, deviation = sqrt(p * (1 - p) / N);
        ck_assert_double_eq_tol((double)counts[i] / N, p, 5 * deviation);
    }
}
END_TEST

START_TEST(rotation_turns_pairs)
{
    const float factors[] = {1, 4};
    double frequencies[2];
    rope_frequencies(4, 100, 0.5, factors, frequencies);
    ck_assert_double_eq_tol(frequencies[0], 0.5, 1e-15);
    ck_assert_double_eq_tol(frequencies[1], 0.5 / 10 / 4, 1e-15);
    float table[4], out[6];
    rope_table(3, 2, frequencies, table);
    const float in[6] = {1, 2, 3, 4, 5, 6}; /* the last two are past the rotated part */
    rope_apply(table, 2, 1, 6, in, out);
    for (size_t i = 0; i < 2; i++) {
        const double angle = 3 * frequencies[i], x = (double)in[2 * i], y = (double)in[2 * i + 1];
        ck_assert_double_eq_tol((double)out[2 * i], x * cos(angle) - y * sin(angle), 1e-6);
        ck_assert_double_eq_tol((double)out[2 * i + 1], x * sin(angle) + y * cos(angle), 1e-6);
    }
    ck_assert(out[4] == 5 && out[5] == 6);
}
END_TEST

START_TEST(swiglu_follows_its_formula)
{
    enum { ROWS = 7, WIDTH = 37 };
    static float gate_up[ROWS * 2 * WIDTH], out[ROWS * WIDTH];
    for (size_t i = 0; i < ROWS * 2 * WIDTH; i++)
        gate_up[i] = 40 * sinf((float)i) * (float)(i % 5);
    gate_up[3] = NAN;
    gate_up[4] = -INFINITY;
    rows_swiglu(ROWS, WIDTH, gate_up, out);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < WIDTH; i++) {
            const double gate = (double)gate_up[r * 2 * WIDTH + i], up = (double)gate_up[(r * 2 + 1) * WIDTH + i];
            const double want = gate / (1 + exp(-gate)) * up, got = (double)out[r * WIDTH + i];
            if (isnan(gate))
                ck_assert(isnan(got));
            else if (isfinite(gate))
                ck_assert_double_eq_tol(got, want, 1e-6 * fabs(want) + 1e-30);
        }
}
END_TEST

START_TEST(norm_follows_its_formula)
{
    enum { ROWS = 6, WIDTH = 29 };
    static float x[ROWS * WIDTH], weight[WIDTH], y[ROWS * WIDTH];
    for (size_t i = 0; i < ROWS * WIDTH; i++)
        x[i] = cosf((float)i) * (float)(1 + i / WIDTH * 1000);
    for (size_t i = 0; i < WIDTH; i++)
        weight[i] = (float)i - 5;
    rows_norm(ROWS, WIDTH, weight, 1e-5f, x, y);
    for (size_t r = 0; r < ROWS; r++) {
        double sum = 0;
        for (size_t i = 0; i < WIDTH; i++)
            sum += (double)x[r * WIDTH + i] * (double)x[r * WIDTH + i];
        for (size_t i = 0; i < WIDTH; i++) {
            const double want = (double)x[r * WIDTH + i] / sqrt(sum / WIDTH + 1e-5) * (double)weight[i];
            ck_assert_double_eq_tol((double)y[r * WIDTH + i], want, 1e-6 * fabs(want) + 1e-30);
        }
    }
}
END_TEST

START_TEST(prompts_are_selected)
{
    static const char lines[] = "{\"task\": \"a\", \"id\": 0, \"context\": \"c0\", \"question\": \"q\", \"answer\": \"x\"}\n"
                                "\n"
                                "{\"task\": \"ab\", \"id\": \"z\", \"context\": \"c1\", \"question\": \"\", \"answer\": \"\"}\n"
                                "{\"task\": \"a\", \"id\": 1, \"context\": \"c\\u00e9\", \"question\": \"q\", \"answer\": \"y\"}";
    char path[] = "/tmp/doublep-prompts-XXXXXX", error[256];
    const int descriptor = mkstemp(path);
    ck_assert_int_ge(descriptor, 0);
    ck_assert_int_eq(write(descriptor, lines, strlen(lines)), (ssize_t)strlen(lines));
    close(descriptor);
    prompt_list list;
    ck_assert(prompts_load(&list, path, NULL, 100, error, sizeof(error)));
    ck_assert_uint_eq(list.count, 3);
    ck_assert_str_eq(list.records[1].name, "ab:z");
    ck_assert_str_eq(list.records[2].context, "c\xc3\xa9");
    ck_assert_uint_eq(list.records[2].context_length, 3);
    prompts_free(&list);
    ck_assert(prompts_load(&list, path, "a", 100, error, sizeof(error)));
    ck_assert_uint_eq(list.count, 2);
    prompts_free(&list);
    ck_assert(prompts_load(&list, path, "a", 1, error, sizeof(error)));
    ck_assert_uint_eq(list.count, 1);
    prompts_free(&list);
    ck_assert(prompts_load(&list, path, "a:1", 100, error, sizeof(error)));
    ck_assert_str_eq(list.records[0].answer, "y");
    prompts_free(&list);
    ck_assert(!prompts_load(&list, path, "b", 100, error, sizeof(error)));
    unlink(path);
    ck_assert(!prompts_load(&list, path, NULL, 100, error, sizeof(error)));
}
END_TEST

static float random_float(void)
{
    return (float)rand() / (float)RAND_MAX - 0.5f;
}

/* In f32 and in bytes (the same where there are none), rows and shapes as they come, against double precision. */
START_TEST(products_are_within_their_bounds)
{
    enum { MAX_IN = 300, MAX_OUT = 70, MAX_ROWS = 5 };
    static const size_t shapes[][3] = {{1, 1, 1}, {8, 3, 1}, {300, 70, 1}, {257, 65, 5}, {64, 16, 2}};
    static float w[MAX_OUT * MAX_IN], x[MAX_ROWS * MAX_IN], y[MAX_ROWS * MAX_OUT];
    const size_t n_in = shapes[_i][0], n_out = shapes[_i][1], rows = shapes[_i][2];
    char error[256];
    for (int contents = 0; contents < 5; contents++) { /* ordinary, an outlier, zeros, x and w not finite */
        for (size_t i = 0; i < n_in * n_out; i++)
            w[i] = contents == 2 ? 0 : random_float();
        for (size_t i = 0; i < rows * n_in; i++)
            x[i] = contents == 2 ? 0 : random_float();
        if (contents == 1)
            w[n_in * n_out / 2] = 1e4f, x[rows * n_in - 1] = -3e3f;
        if (contents == 3)
            x[0] = NAN;
        if (contents == 4)
            w[0] = INFINITY; /* no weights in bytes */
        linear_weights *const weights = linear_weights_create(n_in, n_out, w, error, sizeof(error));
        linear_executor *const executor = linear_executor_create(error, sizeof(error));
        ck_assert_msg(weights && executor, "%s", error);
        for (int in_bytes = 0; in_bytes < 2; in_bytes++) {
            memset(y, 0xff, sizeof(y));
            ck_assert_msg(linear_execute(executor, weights, in_bytes, rows, x, y, error, sizeof(error)), "%s", error);
            for (size_t r = 0; r < rows; r++)
                for (size_t o = 0; o < n_out; o++) {
                    double sum = 0, sum_of_x = 0, top_x = 0, top_w = 0;
                    for (size_t i = 0; i < n_in; i++) {
                        const double a = (double)x[r * n_in + i], b = (double)w[o * n_in + i];
                        sum += a * b;
                        sum_of_x += fabs(a);
                        top_x = fmax(top_x, fabs(a));
                        top_w = fmax(top_w, fabs(b));
                    }
                    const double bound = in_bytes && contents < 4 ? top_w * (sum_of_x / 250 + (double)n_in * top_x / 65000)
                                                  : 1e-6 * (double)n_in * top_w * top_x;
                    const double got = (double)y[r * n_out + o];
                    ck_assert_msg(sum != sum ? got != got : isinf(sum) ? got == sum : fabs(got - sum) <= bound,
                                  "bytes %d, contents %d, row %zu: output %zu is %g, must be %g to %g", in_bytes, contents, r,
                                  o, got, sum, bound);
                }
        }
        linear_executor_free(executor);
        linear_weights_free(weights);
    }
}
END_TEST

int main(void)
{
    TCase *const tests = tcase_create("helpers");
    tcase_add_loop_test(tests, text_goes_out_in_whole_characters, 0, sizeof(texts) / sizeof(texts[0]));
    tcase_add_test(tests, greedy_takes_the_first_of_the_largest);
    tcase_add_test(tests, samples_follow_the_softmax);
    tcase_add_test(tests, rotation_turns_pairs);
    tcase_add_test(tests, swiglu_follows_its_formula);
    tcase_add_test(tests, norm_follows_its_formula);
    tcase_add_test(tests, prompts_are_selected);
    tcase_add_loop_test(tests, products_are_within_their_bounds, 0, 5);
    Suite *const suite = suite_create("helpers");
    suite_add_tcase(suite, tests);
    SRunner *const runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK); /* OpenMP's threads do not survive a fork */
    srunner_run_all(runner, CK_NORMAL);
    const int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
