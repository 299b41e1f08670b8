/* eval_result.h: what was measured of one method on some prompts: sums, which add up over prompts, and figures that
 * follow from them. */
#ifndef DOUBLEP_TOOL_EVAL_RESULT_H
#define DOUBLEP_TOOL_EVAL_RESULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

/* Counts of values from 2^-24 to 2^4 in bins that are 1/32 of an octave wide: quantiles to 2 %. */
enum { EVAL_BINS_PER_OCTAVE = 32, EVAL_OCTAVES = 28, EVAL_BINS = EVAL_BINS_PER_OCTAVE * EVAL_OCTAVES };

typedef struct eval_histogram {
    uint32_t counts[EVAL_BINS];
} eval_histogram;

void eval_histogram_add(eval_histogram *h, double value);

/* The value that the share p of all values does not exceed; 0 without values. */
double eval_histogram_quantile(const eval_histogram *h, double p);

/* Sums per position in the answer. */
typedef struct eval_position {
    double count, kl, error, mass, bytes, bytes_dense;
} eval_position;

typedef struct eval_result {
    /* Doubles hold whole numbers to 2^53, and one table then reads, writes and adds all of them. */
    double prompts;
    double answers_equal, dense_right, method_right, equal_where_right; /* prompts */
    double answer_tokens, tokens_equal;
    double kl_tokens, kl_sum, kl_max; /* over answer positions whose history is dense attention's */
    double kl_prompt_sum, kl_prompt_max; /* of the means over the prompts */
    double nll_sum, nll_dense_sum; /* -log p of the answer's tokens, where they are given */
    double head_steps, error_sum, error_max, mass_sum, under_p; /* per layer, query head and token */
    double tokens_kept, tokens_held; /* per layer, KV head and token: used, in the cache */
    double steps; /* tokens decoded */
    double bytes_index, bytes_rows, bytes_dense;
    double attention_ns, append_ns, create_ns;
    double attention_median_ns; /* of the tokens of a prompt; the machine may be busy with other things, too */
    eval_histogram error, lost; /* relative error; 1 - mass */
    eval_position *positions;
    size_t n_positions;
} eval_result;

void eval_result_free(eval_result *r);

/* Makes sure that there are n positions; false where there is no memory. */
bool eval_result_reserve(eval_result *r, size_t n);

/* Adds `other` to r. */
bool eval_result_add(eval_result *r, const eval_result *other);

/* All of it, so that it can be read back bit by bit. */
json_t *eval_result_save(const eval_result *r);
bool eval_result_load(eval_result *r, const json_t *saved);

/* The figures that follow, for machines. */
json_t *eval_result_figures(const eval_result *r);

/* Numerator over denominator, 0 where there is none. */
double eval_ratio(double sum, double n);

#endif
