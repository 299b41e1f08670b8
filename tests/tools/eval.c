/* eval.c: `doublep eval` on made-up prompts of some 600 tokens: the figures are there and fit together, dense attention
 * is equal to itself, and a run that goes on from an interrupted one ends where an uninterrupted one does.
 * Usage: test_eval DOUBLEP; the model is in DOUBLEP_TEST_DATA. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "../suite.h"

static const char *command;
static char folder[] = "/tmp/doublep-eval-XXXXXX";

#define METHODS                                                                                                    \
    "dense,double-p:min_context=0,double-p:epsilon=0.5:min_context=0,double-p-paper:min_context=0,"                 \
    "retroinfer:segment_tokens=256,quest:share=0.1,quest+twilight:share=0.5:p=0.8,oracle:p=0.9"
enum { N_METHODS = 8, N_PROMPTS = 3 };

static int write_prompts(void)
{
    static const char *const words[] = {"time", "cluster", "value", "memory", "window", "head", "token", "mass"};
    char path[128];
    snprintf(path, sizeof(path), "%s/prompts.jsonl", folder);
    FILE *const out = fopen(path, "w");
    if (!out)
        return 0;
    unsigned state = 1;
    for (int i = 0; i < N_PROMPTS; i++) {
        fprintf(out, "{\"task\": \"%s\", \"id\": %d, \"ctx\": %d, \"context\": \"", i < 2 ? "find" : "list", i,
                i == 1 ? 300 : 600);
        for (int j = 0; j < (i == 1 ? 250 : 500); j++) {
            state = state * 1103515245 + 12345;
            fprintf(out, "%s%s", words[state >> 16 & 7], j % 12 == 11 ? ".\\n" : " ");
            if (j == 100)
                fprintf(out, "One of the special magic numbers for cluster is: %d. ", 4711 + i);
        }
        fprintf(out, "\", \"question\": \"\\nQuestion: What is the special magic number for cluster?\\nAnswer:\", "
                     "\"answer\": \" %d.\"}\n", 4711 + i);
    }
    return fclose(out) == 0;
}

/* Runs the command with a printf format of arguments after model and prompts; returns the exit status. */
__attribute__((format(printf, 1, 2))) static int run(const char *format, ...)
{
    char text[2048];
    const int n = snprintf(text, sizeof(text),
                           "OMP_WAIT_POLICY=passive %s eval --model %s/needle-12m.q8_0.gguf >%s/stdout 2>%s/stderr ",
                           command, getenv("DOUBLEP_TEST_DATA"), folder, folder);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + n, sizeof(text) - (size_t)n, format, arguments);
    va_end(arguments);
    const int status = system(text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static json_t *load(const char *name)
{
    char path[128];
    json_error_t error;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    json_t *const o = json_load_file(path, 0, &error);
    ck_assert_msg(o != NULL, "%s: %s", path, error.text);
    return o;
}

/* Whether a file in the folder has this text. */
static int has(const char *name, const char *text)
{
    char path[128], grep[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    snprintf(grep, sizeof(grep), "grep -q -e '%s' %s", text, path);
    return system(grep) == 0;
}

static double number(const json_t *o, const char *name)
{
    const json_t *const x = json_object_get(o, name);
    ck_assert_msg(json_is_number(x), "%s is missing", name);
    return json_number_value(x);
}

static const char *const figures[] = {
    "prompts",       "whole_answers_equal", "tokens_equal", "kl_mean", "kl_max",        "rel_error_mean",
    "rel_error_p99", "mass_mean",           "mass_p1",      "bytes_fraction", "under_p_share", "attention_ms_per_token",
};
enum { N_FIGURES = sizeof(figures) / sizeof(figures[0]) };

static void check_ranges(const json_t *o)
{
    for (size_t i = 0; i < N_FIGURES; i++)
        ck_assert_double_ge(number(o, figures[i]), 0);
    static const char *const shares[] = {"whole_answers_equal", "tokens_equal", "mass_mean", "mass_p1", "under_p_share"};
    for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++)
        ck_assert_double_le(number(o, shares[i]), 1);
    ck_assert_double_le(number(o, "kl_mean"), number(o, "kl_max"));
    ck_assert_double_le(number(o, "rel_error_mean"), number(o, "rel_error_max"));
    ck_assert_double_gt(number(o, "bytes_fraction"), 0);
    ck_assert_double_le(number(o, "mass_p1"), number(o, "mass_mean") + 0.03);
}

/* The whole is the sum of its parts. */
static void check_parts(const json_t *method, const char *by)
{
    double prompts = 0, kl = 0, tokens = 0, equal = 0;
    const char *name;
    json_t *part;
    json_object_foreach(json_object_get(method, by), name, part) {
        check_ranges(part);
        prompts += number(part, "prompts");
        tokens += number(part, "answer_tokens");
        kl += number(part, "kl_mean") * number(part, "answer_tokens");
        equal += number(part, "whole_answers_equal") * number(part, "prompts");
    }
    ck_assert_double_eq(prompts, N_PROMPTS);
    ck_assert_double_eq(tokens, number(method, "answer_tokens"));
    ck_assert_double_eq_tol(kl / tokens, number(method, "kl_mean"), 1e-6);
    ck_assert_double_eq_tol(equal / prompts, number(method, "whole_answers_equal"), 1e-6);
}

START_TEST(figures_fit_together)
{
    ck_assert_int_eq(run("--prompts %s/prompts.jsonl --methods %s --json %s/a.json --cache %s/a --svg %s/a.svg --positions",
                         folder, METHODS, folder, folder, folder), 0);
    json_t *const o = load("a.json"), *const methods = json_object_get(o, "methods");
    ck_assert_uint_eq(json_array_size(methods), N_METHODS);
    for (size_t i = 0; i < N_METHODS; i++) {
        const json_t *const m = json_array_get(methods, i);
        check_ranges(m);
        check_parts(m, "by_task");
        check_parts(m, "by_context");
        ck_assert_uint_eq(json_object_size(json_object_get(m, "by_task")), 2);
        ck_assert_ptr_nonnull(json_object_get(json_object_get(m, "by_task"), "find"));
        ck_assert_ptr_nonnull(json_object_get(json_object_get(m, "by_context"), "300"));
        ck_assert_uint_eq(json_array_size(json_object_get(m, "by_prompt")), N_PROMPTS);
        ck_assert_double_eq(number(m, "prompts"), N_PROMPTS);
        ck_assert_double_gt(number(m, "steps"), number(m, "answer_tokens"));
        if (i > 0)
            ck_assert_double_lt(number(m, "bytes_fraction"), 1);
    }
    const json_t *const dense = json_array_get(methods, 0), *const fine = json_array_get(methods, 1);
    const json_t *const coarse = json_array_get(methods, 2), *const oracle = json_array_get(methods, 7);
    ck_assert_str_eq(json_string_value(json_object_get(dense, "name")), "dense");
    ck_assert_double_eq(number(dense, "whole_answers_equal"), 1);
    ck_assert_double_eq(number(dense, "kl_max"), 0);
    ck_assert_double_eq(number(dense, "bytes_fraction"), 1);
    ck_assert_double_lt(number(dense, "rel_error_max"), 1e-4);
    ck_assert_double_gt(number(dense, "mass_p1"), 0.9999);
    ck_assert_double_eq(number(json_object_get(coarse, "params"), "epsilon"), 0.5);
    ck_assert_double_lt(number(coarse, "bytes_fraction"), number(fine, "bytes_fraction"));
    ck_assert_double_gt(number(coarse, "rel_error_mean"), number(fine, "rel_error_mean"));
    ck_assert_double_ge(number(oracle, "mass_p1"), 0.89);
    ck_assert_double_eq(number(oracle, "under_p_share"), 0);
    ck_assert(has("stdout", "by task") && has("stdout", "by context") && has("stdout", "by position"));
    ck_assert(system("command -v gnuplot >/dev/null") != 0 || has("a.svg", "retroinfer"));
    json_decref(o);
}
END_TEST

/* All figures but times. */
static void strip_times(json_t *o)
{
    static const char *const times[] = {"attention_ms_per_token", "attention_ms_per_token_mean", "append_ms_per_token",
                                        "index_ms_per_prompt"};
    const char *name;
    json_t *part;
    size_t i;
    for (size_t t = 0; t < sizeof(times) / sizeof(times[0]); t++)
        if (json_is_object(o))
            json_object_del(o, times[t]);
    if (json_is_object(o))
        json_object_foreach(o, name, part)
            strip_times(part);
    else
        json_array_foreach(o, i, part)
            strip_times(part);
}

START_TEST(interrupted_run_goes_on)
{
    static const char all[] = "--prompts %s/prompts.jsonl --methods " METHODS " --json %s/%s.json --cache %s/%s";
    ck_assert_int_eq(run(all, folder, folder, "whole", folder, "whole"), 0);

    ck_assert_int_eq(run("--prompts %s/prompts.jsonl --methods dense,quest:share=0.1 --limit 2 --cache %s/parts", folder,
                         folder), 0);
    char cut[256];
    snprintf(cut, sizeof(cut), "printf '{\"key\": \"cut o' >>%s/parts/results.jsonl", folder);
    ck_assert_int_eq(system(cut), 0);
    ck_assert_int_eq(run(all, folder, folder, "parts", folder, "parts"), 0);
    json_t *const whole = load("whole.json"), *const parts = load("parts.json");
    strip_times(whole);
    strip_times(parts);
    ck_assert(json_equal(whole, parts));

    /* Nothing is left to do, and nothing changes any more, times included. */
    ck_assert_int_eq(run(all, folder, folder, "again", folder, "parts"), 0);
    ck_assert(!has("stderr", "find:0"));
    json_t *const first = load("parts.json"), *const again = load("again.json");
    ck_assert(json_equal(first, again));

    /* A damaged prefill is made anew. */
    snprintf(cut, sizeof(cut), "for f in %s/parts/rows-*; do printf x | dd of=$f bs=1 seek=5000 conv=notrunc; done 2>&1 |"
             " grep -q copied && rm %s/parts/results.jsonl", folder, folder);
    ck_assert_int_eq(system(cut), 0);
    ck_assert_int_eq(run(all, folder, folder, "anew", folder, "parts"), 0);
    json_t *const anew = load("anew.json");
    strip_times(anew);
    ck_assert(json_equal(whole, anew));
    json_decref(whole);
    json_decref(parts);
    json_decref(first);
    json_decref(again);
    json_decref(anew);
}
END_TEST

START_TEST(other_ways_to_answer)
{
    ck_assert_int_eq(run("--prompts %s/prompts.jsonl --limit 1 --generate=6 --methods dense,oracle:p=1 --json -", folder), 0);
    json_t *o = load("stdout");
    const json_t *m = json_array_get(json_object_get(o, "methods"), 1);
    ck_assert_double_eq(number(m, "whole_answers_equal"), 1);
    ck_assert_double_le(number(m, "answer_tokens"), 6);
    ck_assert_double_lt(number(m, "kl_max"), 1e-6);
    json_decref(o);

    ck_assert_int_eq(run("--prompts %s/prompts.jsonl --limit 1 --continue=20 --logits-only --json - "
                         "--methods dense,oracle:p=1,retroinfer:exact=0.01:estimated=0.01:segment_tokens=256", folder), 0);
    o = load("stdout");
    m = json_array_get(json_object_get(o, "methods"), 1);
    ck_assert_double_eq(number(m, "answer_tokens"), 20);
    ck_assert_double_eq(number(m, "tokens_equal"), 1);
    ck_assert_double_eq(number(m, "rel_error_mean"), 0); /* not measured */
    ck_assert_uint_eq(json_array_size(json_object_get(m, "by_position")), 20);
    ck_assert_double_gt(number(json_array_get(json_object_get(o, "methods"), 2), "kl_mean"), 1e-6);
    json_decref(o);

    ck_assert_int_eq(run("--text %s/prompts.jsonl --context 300 --score 50 --limit 2 --methods dense,oracle:p=1 --json -",
                         folder), 0);
    o = load("stdout");
    m = json_array_get(json_object_get(o, "methods"), 1);
    ck_assert_double_eq(number(m, "prompts"), 2);
    ck_assert_double_eq(number(m, "answer_tokens"), 100);
    ck_assert_double_gt(number(m, "perplexity"), 1);
    ck_assert_double_eq_tol(number(m, "perplexity"), number(m, "perplexity_dense"), 1e-3 * number(m, "perplexity"));
    json_decref(o);
}
END_TEST

START_TEST(errors_are_told)
{
    static const struct {
        int status;
        const char *arguments, *message;
    } wrong[] = {
        {2, "", "either --prompts FILE or --text FILE"},
        {2, "--prompts x --text y", "either --prompts FILE or --text FILE"},
        {2, "--prompts x --methods dense,best", "\"best\" is no method"},
        {2, "--prompts x --methods quest:shares=1", "has no setting \"shares\"; it has share"},
        {2, "--prompts x --methods oracle:p=much", "p is \"much\""},
        {2, "--prompts x --generate=0", "generate is \"0\""},
        {2, "--prompts x --generate --continue", "do not go together"},
        {2, "--text x --context 100 --score 99", "score is 99"},
        {1, "--prompts /nonexistent", "No such file"},
        {1, "--text /dev/null", "a window needs"},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        ck_assert_int_eq(run("%s", wrong[i].arguments), wrong[i].status);
        ck_assert_msg(has("stderr", wrong[i].message), "%s: no %s", wrong[i].arguments, wrong[i].message);
    }
    ck_assert_int_eq(run("--prompts %s/prompts.jsonl --limit 1 --methods oracle:p=2", folder), 1);
    ck_assert(has("stderr", "p must be in"));
    ck_assert_int_eq(run("--prompts %s/prompts.jsonl --limit 1 --methods double-p:epsilon=2:min_context=0", folder), 1);
    ck_assert(has("stderr", "epsilon is 2"));
    ck_assert_int_eq(run("--prompts %s/prompts.jsonl --select nothing", folder), 1);
    ck_assert(has("stderr", "no prompt is nothing"));
    ck_assert_int_eq(run("--prompts %s/prompts.jsonl --limit 1 --cache /proc/nowhere", folder), 1);
    ck_assert(has("stderr", "/proc/nowhere"));
}
END_TEST

int main(int argc, char **argv)
{
    if (argc != 2 || !getenv("DOUBLEP_TEST_DATA") || !mkdtemp(folder) || !write_prompts()) {
        fprintf(stderr, "usage: test_eval DOUBLEP, with DOUBLEP_TEST_DATA in the environment\n");
        return 2;
    }
    command = argv[1];
    Suite *const suite = suite_create("eval");
    TCase *const cases = tcase_create("eval");
    tcase_set_timeout(cases, 280);
    tcase_add_test(cases, figures_fit_together);
    tcase_add_test(cases, interrupted_run_goes_on);
    tcase_add_test(cases, other_ways_to_answer);
    tcase_add_test(cases, errors_are_told);
    suite_add_tcase(suite, cases);
    const int failed = run_suite(suite);
    char clean[64];
    snprintf(clean, sizeof(clean), "rm -rf %s", folder);
    return system(clean) != 0 || failed;
}
