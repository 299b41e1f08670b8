/* eval_logits.h: what dense attention said at the answer positions of a prompt, and how far others are from it. */
#ifndef DOUBLEP_TOOL_EVAL_LOGITS_H
#define DOUBLEP_TOOL_EVAL_LOGITS_H

#include "eval_result.h"

typedef struct eval_reference {
    size_t n_vocab, count, capacity; /* positions */
    float *logits;                   /* [count][n_vocab] */
    int32_t *ids;                    /* [count] the likeliest */
} eval_reference;

void eval_reference_free(eval_reference *r);
bool eval_reference_push(eval_reference *r, const float *logits, int32_t likeliest);

/* KL(softmax(dense) || softmax(other)) in nats; *nll and *dense_nll: -log of the probability of `id` in either. */
double eval_divergence(const float *dense, const float *other, size_t n, int32_t id, double *nll, double *dense_nll);

/* Adds one position to the result: the logits there, their likeliest token, and the one that is fed next. */
void eval_score_position(const eval_reference *r, size_t position, const float *logits, int32_t likeliest, int32_t id,
                         eval_result *result);

/* Closes the result of a prompt: expected tokens [n_expected], of which the method said the first n_right; diverged: it
 * went on by other tokens than dense attention. */
void eval_score_answer(const eval_reference *r, const int32_t *expected, size_t n_expected, size_t n_right,
                       bool diverged, eval_result *result);

#endif
