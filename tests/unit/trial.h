/* A random case of the property tests: shapes and settings, tokens, queries, and a runtime to compute on. All of it
 * follows from a seed, DP_TEST_SEED in the environment, and the case's number. */
#ifndef TESTS_UNIT_TRIAL_H
#define TESTS_UNIT_TRIAL_H

#include "unit.h"

typedef struct trial {
    rng r;
    cache c;
    dp_runtime *rt;
    dp_sequence_config config;
    size_t n_queries, n_out, n_lse; /* floats of out and lse of a call */
    float *q;
    char words[256]; /* what to know of the case when something fails */
} trial;

/* With tokens for a cache of at least `least` tokens. */
trial trial_open(int number, size_t least);
void trial_close(trial *t);

uint64_t trial_seed(void);
int trial_rounds(int usual); /* DP_TEST_ROUNDS in the environment replaces the usual number of cases */

size_t trial_below(trial *t, size_t bound); /* 0 .. bound - 1 */

/* An empty sequence of the case's shape. */
dp_sequence *trial_sequence(const trial *t);

/* Appends tokens first .. last - 1 of the cache in random chunks of at least `shortest` tokens, as far as that goes. */
void trial_append(trial *t, dp_sequence *s, size_t first, size_t last, size_t shortest);

/* Settings under which a step is exact: dense, or all refined by either rule. */
dp_attention_params trial_exact_params(trial *t);
dp_attention_params trial_sparse_params(trial *t);

/* Decodes the case's queries; out has n_out, lse n_lse floats. */
void trial_decode(const trial *t, dp_sequence *s, const dp_attention_params *params, float *out, float *lse);

/* Fails unless out and lse are those of dense attention over the case's cache, in double precision, to what f32 can do:
 * bounds follow from the logits' magnitude and from the sum of |weight * value|, element by element. */
void trial_expect_dense(const trial *t, const float *out, const float *lse);

/* Fails with the case's words and a message unless the condition holds. */
#define trial_expect(t, condition, ...)                                                                                \
    do {                                                                                                               \
        if (!(condition)) trial_fail(t, __VA_ARGS__);                                                                  \
    } while (0)
void trial_fail(const trial *t, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));

#endif
