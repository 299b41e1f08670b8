/* golden.c: the runner against golden values: greedy tokens of the committed model, the forward pass against a slow one
 * in double precision, and, where DOUBLEP_MODEL_DIR names the folder with the original weights, their logits.
 *
 *     golden committed | reference | original
 *
 * DOUBLEP_TEST_DATA is the folder tests/data. Exit status 77: skipped. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <check.h>
#include <jansson.h>

#include "context.h"
#include "convert.h"
#include "llama_reference.h"
#include "sampler.h"

enum { N_CASES = 2, N_GREEDY = 10, N_REFERENCE = 200, MAX_TOKENS = 1024, MAX_DIM = 512 };

/* Bounds on absolute differences: rounding of f32 sums, far below anything a wrong rotation, norm or head would give. */
static const double row_bound = 1e-3, logit_bound = 2e-2;

typedef struct golden_case {
    size_t n_tokens, n_logits, n_row;
    int32_t tokens[MAX_TOKENS], greedy[N_GREEDY];
    double *logits, key[MAX_DIM], value[MAX_DIM];
} golden_case;

static golden_case cases[N_CASES];
static char error[512];

static const char *data_path(const char *name)
{
    static char path[4096];
    const char *const folder = getenv("DOUBLEP_TEST_DATA");
    snprintf(path, sizeof(path), "%s/%s", folder ? folder : "tests/data", name);
    return path;
}

static size_t read_ints(const json_t *object, const char *key, int32_t *values, size_t max)
{
    const json_t *const array = json_object_get(object, key);
    const size_t n = json_array_size(array);
    ck_assert_msg(n > 0 && n <= max, "golden.json: %s has %zu elements", key, n);
    for (size_t i = 0; i < n; i++)
        values[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return n;
}

static size_t read_reals(const json_t *object, const char *key, double *values, size_t max)
{
    const json_t *const array = json_object_get(object, key);
    const size_t n = json_array_size(array);
    ck_assert_msg(n > 0 && n <= max, "golden.json: %s has %zu elements", key, n);
    for (size_t i = 0; i < n; i++)
        values[i] = json_number_value(json_array_get(array, i));
    return n;
}

static void read_cases(void)
{
    json_t *const root = json_load_file(data_path("golden.json"), 0, NULL);
    ck_assert_uint_eq(json_array_size(root), N_CASES);
    for (size_t i = 0; i < N_CASES; i++) {
        golden_case *const c = &cases[i];
        const json_t *const object = json_array_get(root, i);
        c->n_tokens = read_ints(object, "tokens", c->tokens, MAX_TOKENS);
        ck_assert_uint_eq(read_ints(object, "greedy_next", c->greedy, N_GREEDY), N_GREEDY);
        c->n_logits = json_array_size(json_object_get(object, "last_logits"));
        c->logits = calloc(c->n_logits, sizeof(double));
        read_reals(object, "last_logits", c->logits, c->n_logits);
        c->n_row = read_reals(object, "k_layer0_head0_last", c->key, MAX_DIM);
        ck_assert_uint_eq(read_reals(object, "v_layer5_head1_last", c->value, MAX_DIM), c->n_row);
    }
    json_decref(root);
}

static void free_cases(void)
{
    for (size_t i = 0; i < N_CASES; i++)
        free(cases[i].logits);
}

static model *load(const char *path)
{
    model *const m = model_load(path, error, sizeof(error));
    ck_assert_msg(m != NULL, "%s", error);
    return m;
}

static model_context *create_context(const model *m, uint32_t chunk, bool f32_steps)
{
    model_context_config config;
    model_context_config_init(&config, m);
    config.chunk = chunk;
    config.f32_steps = f32_steps;
    config.sequences[0].type = DP_F32;
    model_context *const context = model_context_create(m, &config, error, sizeof(error));
    ck_assert_msg(context != NULL, "%s", error);
    return context;
}

static double largest_difference(const float *a, const double *b, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        const double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= largest)) /* a NaN is the largest of all */
            largest = difference;
    }
    return largest;
}

static void check_greedy(model_context *context, const golden_case *c, float *logits)
{
    const size_t n_vocab = model_context_model(context)->shape.n_vocab;
    sampler greedy = {0};
    for (size_t i = 0; i < N_GREEDY; i++) {
        const int32_t id = sampler_next(&greedy, logits, n_vocab);
        ck_assert_msg(id == c->greedy[i], "greedy token %zu is %d, must be %d", i, id, c->greedy[i]);
        ck_assert_msg(model_decode(context, 0, &id, 1, NULL, logits, NULL, error, sizeof(error)), "%s", error);
    }
}

/* ---- The committed model --------------------------------------------------------------------------------------- */

START_TEST(committed_model_continues_as_the_original)
{
    const golden_case *const c = &cases[_i];
    model *const m = load(data_path("needle-12m.q8_0.gguf"));
    model_context *const context = create_context(m, 512, false);
    float *const logits = calloc(m->shape.n_vocab, sizeof(float));
    ck_assert_msg(model_prefill(context, c->tokens, c->n_tokens, logits, NULL, NULL, NULL, error, sizeof(error)), "%s",
                  error);
    check_greedy(context, c, logits);
    free(logits);
    model_context_free(context);
    model_free(m);
}
END_TEST

/* A prompt cut anywhere, and the same tokens decoded one by one or a few at a time, must end in the same logits; with the
 * weights in bytes in such as differ by a few hundredths of what logits are (8.7 in the root mean square). */
START_TEST(chunks_and_steps_agree)
{
    static const size_t prefilled[] = {578, 577, 500, 540, 1};
    static const uint32_t chunks[] = {512, 100, 37, 512, 512};
    const float bound = _i ? 1e-3f : 0.5f; /* in f32, in bytes */
    const golden_case *const c = &cases[0];
    model *const m = load(data_path("needle-12m.q8_0.gguf"));
    float *const whole = calloc(m->shape.n_vocab, sizeof(float));
    float *const logits = calloc((size_t)DP_MAX_DECODE_QUERIES * m->shape.n_vocab, sizeof(float));
    for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
        model_context *const context = create_context(m, chunks[i], _i);
        float *last = logits;
        ck_assert_msg(model_prefill(context, c->tokens, prefilled[i], logits, NULL, NULL, NULL, error, sizeof(error)),
                      "%s", error);
        for (size_t t = prefilled[i], n; t < c->n_tokens; t += n) {
            n = i % 2 ? 1 : c->n_tokens - t;
            if (n > DP_MAX_DECODE_QUERIES)
                n = DP_MAX_DECODE_QUERIES;
            ck_assert_msg(model_decode(context, 0, c->tokens + t, n, NULL, logits, NULL, error, sizeof(error)), "%s",
                          error);
            last = logits + (n - 1) * m->shape.n_vocab;
        }
        if (i == 0)
            memcpy(whole, last, m->shape.n_vocab * sizeof(float));
        for (size_t j = 0; j < m->shape.n_vocab; j++)
            ck_assert_msg(fabsf(last[j] - whole[j]) < bound, "%zu prefilled: logit %zu is %g, must be %g",
                          prefilled[i], j, (double)last[j], (double)whole[j]);
        model_context_free(context);
    }
    free(whole);
    free(logits);
    model_free(m);
}
END_TEST

/* ---- Against double precision ---------------------------------------------------------------------------------- */

START_TEST(runner_matches_double_precision)
{
    model *const m = load(data_path("needle-12m.q8_0.gguf"));
    const model_shape *const s = &m->shape;
    llama_reference *const r = llama_reference_run(m->file, cases[_i].tokens, N_REFERENCE);
    model_context *const context = create_context(m, 64, false);
    float *const logits = calloc(s->n_vocab, sizeof(float));
    float *const k = calloc(N_REFERENCE * s->key_dim, sizeof(float));
    float *const v = calloc(N_REFERENCE * s->value_dim, sizeof(float));
    ck_assert_msg(model_prefill(context, cases[_i].tokens, N_REFERENCE, logits, NULL, NULL, NULL, error, sizeof(error)),
                  "%s", error);
    const double logit_difference = largest_difference(logits, r->logits, s->n_vocab);

    double row_difference = 0;
    for (uint32_t layer = 0; layer < s->n_layers; layer++)
        for (uint32_t head = 0; head < s->n_kv_heads; head++) {
            ck_assert_int_eq(dp_sequence_read(model_context_sequence(context, 0), layer, head, 0, N_REFERENCE, k, v),
                             DP_OK);
            for (size_t t = 0; t < N_REFERENCE; t++) {
                const size_t row = ((layer * N_REFERENCE + t) * s->n_kv_heads + head) * r->head_dim;
                const double dk = largest_difference(k + t * s->key_dim, r->keys + row, s->key_dim);
                const double dv = largest_difference(v + t * s->value_dim, r->values + row, s->value_dim);
                ck_assert_msg(dk <= row_bound && dv <= row_bound, "layer %u head %u token %zu: key off by %g, value by %g",
                              layer, head, t, dk, dv);
                row_difference = fmax(row_difference, fmax(dk, dv));
            }
        }
    printf("case %d: logits within %.1e, rows within %.1e of double precision\n", _i, logit_difference, row_difference);
    ck_assert_msg(logit_difference <= logit_bound, "logits are off by %g", logit_difference);
    free(logits);
    free(k);
    free(v);
    model_context_free(context);
    llama_reference_free(r);
    model_free(m);
}
END_TEST

/* ---- The original weights -------------------------------------------------------------------------------------- */

START_TEST(original_weights_give_golden_logits)
{
    char path[] = "/tmp/doublep-golden-XXXXXX";
    const int descriptor = mkstemp(path);
    ck_assert_int_ge(descriptor, 0);
    close(descriptor);
    char *const folder = getenv("DOUBLEP_MODEL_DIR");
    char *arguments[] = {(char[]){"convert"}, (char[]){"--type"}, (char[]){"f32"}, folder, path, NULL};
    const int status = cmd_convert(5, arguments);
    model *const m = status == 0 ? model_load(path, error, sizeof(error)) : NULL;
    unlink(path);
    ck_assert_int_eq(status, 0);
    ck_assert_msg(m != NULL, "%s", error);

    for (size_t i = 0; i < N_CASES; i++) {
        const golden_case *const c = &cases[i];
        model_context *const context = create_context(m, 512, false);
        float *const logits = calloc(m->shape.n_vocab, sizeof(float));
        float k[MAX_DIM], v[MAX_DIM];
        ck_assert_uint_eq(c->n_logits, m->shape.n_vocab);
        ck_assert_uint_eq(c->n_row, m->shape.key_dim);
        ck_assert_msg(model_prefill(context, c->tokens, c->n_tokens, logits, NULL, NULL, NULL, error, sizeof(error)),
                      "%s", error);
        const dp_sequence *const sequence = model_context_sequence(context, 0);
        ck_assert_int_eq(dp_sequence_read(sequence, 0, 0, c->n_tokens - 1, 1, k, NULL), DP_OK);
        ck_assert_int_eq(dp_sequence_read(sequence, 5, 1, c->n_tokens - 1, 1, NULL, v), DP_OK);
        const double key = largest_difference(k, c->key, c->n_row), value = largest_difference(v, c->value, c->n_row);
        const double logit = largest_difference(logits, c->logits, c->n_logits);
        printf("case %zu: logits within %.1e, key within %.1e, value within %.1e\n", i, logit, key, value);
        ck_assert_msg(key <= row_bound && value <= row_bound, "key off by %g, value by %g", key, value);
        ck_assert_msg(logit <= logit_bound, "logits are off by %g", logit);
        check_greedy(context, c, logits);
        free(logits);
        model_context_free(context);
    }
    model_free(m);
}
END_TEST

int main(int argc, char **argv)
{
    const char *const what = argc == 2 ? argv[1] : "";
    TCase *const tests = tcase_create(what);
    tcase_set_timeout(tests, 280);
    tcase_add_unchecked_fixture(tests, read_cases, free_cases);
    if (strcmp(what, "committed") == 0) {
        tcase_add_loop_test(tests, committed_model_continues_as_the_original, 0, N_CASES);
        tcase_add_loop_test(tests, chunks_and_steps_agree, 0, 2);
    } else if (strcmp(what, "reference") == 0) {
        tcase_add_loop_test(tests, runner_matches_double_precision, 0, N_CASES);
    } else if (strcmp(what, "original") == 0) {
        if (!getenv("DOUBLEP_MODEL_DIR")) {
            puts("skipped: DOUBLEP_MODEL_DIR does not name a folder with the original weights");
            return 77;
        }
        tcase_add_test(tests, original_weights_give_golden_logits);
    } else {
        fprintf(stderr, "Usage: golden committed | reference | original\n");
        return 2;
    }
    Suite *const suite = suite_create("golden");
    suite_add_tcase(suite, tests);
    SRunner *const runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK); /* OpenMP's threads do not survive a fork */
    srunner_run_all(runner, CK_NORMAL);
    const int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
