/* eval_logits.c: see eval_logits.h. */
#include "eval_logits.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void eval_reference_free(eval_reference *r)
{
    free(r->logits);
    free(r->ids);
    *r = (eval_reference){0};
}

bool eval_reference_push(eval_reference *r, const float *logits, int32_t likeliest)
{
    if (r->count == r->capacity) {
        const size_t capacity = r->capacity ? 2 * r->capacity : 16;
        float *const larger = realloc(r->logits, capacity * r->n_vocab * sizeof(*larger));
        if (larger)
            r->logits = larger;
        int32_t *const ids = larger ? realloc(r->ids, capacity * sizeof(*ids)) : NULL;
        if (!ids)
            return false;
        r->ids = ids;
        r->capacity = capacity;
    }
    memcpy(r->logits + r->count * r->n_vocab, logits, r->n_vocab * sizeof(*logits));
    r->ids[r->count++] = likeliest;
    return true;
}

/* log of the sum of exp. */
static double log_sum(const float *x, size_t n)
{
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        top = (double)x[i] > top ? (double)x[i] : top;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - top);
    return top + log(sum);
}

double eval_divergence(const float *dense, const float *other, size_t n, int32_t id, double *nll, double *dense_nll)
{
    const double a = log_sum(dense, n), b = log_sum(other, n);
    double kl = 0;
    for (size_t i = 0; i < n; i++) {
        const double p = (double)dense[i] - a, q = (double)other[i] - b;
        kl += exp(p) * (p - q);
    }
    *dense_nll = a - (double)dense[id];
    *nll = b - (double)other[id];
    return kl > 0 || isnan(kl) ? kl : 0; /* rounding */
}

void eval_score_position(const eval_reference *r, size_t position, const float *logits, int32_t likeliest, int32_t id,
                         eval_result *result)
{
    double nll, dense_nll;
    const double kl =
        eval_divergence(r->logits + position * r->n_vocab, logits, r->n_vocab, id, &nll, &dense_nll);
    result->kl_tokens++;
    result->kl_sum += kl;
    result->kl_max = kl > result->kl_max || isnan(kl) ? kl : result->kl_max;
    result->nll_sum += nll;
    result->nll_dense_sum += dense_nll;
    result->tokens_equal += likeliest == r->ids[position];
    result->positions[position].kl += kl;
}

void eval_score_answer(const eval_reference *r, const int32_t *expected, size_t n_expected, size_t n_right,
                       bool diverged, eval_result *result)
{
    const bool dense_right =
        r->count >= n_expected && memcmp(r->ids, expected, n_expected * sizeof(*expected)) == 0;
    const bool equal = !diverged && result->tokens_equal == (double)r->count;
    result->answer_tokens = (double)r->count;
    result->answers_equal = equal;
    result->dense_right = dense_right;
    result->method_right = n_right >= n_expected;
    result->equal_where_right = equal && dense_right;
    result->kl_prompt_sum = result->kl_prompt_max = eval_ratio(result->kl_sum, result->kl_tokens);
}
