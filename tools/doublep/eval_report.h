/* eval_report.h: an evaluation's figures as tables, as JSON and as a picture. */
#ifndef DOUBLEP_TOOL_EVAL_REPORT_H
#define DOUBLEP_TOOL_EVAL_REPORT_H

#include <stdio.h>

#include "eval_case.h"
#include "eval_methods.h"
#include "eval_result.h"

typedef struct eval_report {
    const char *model_path, *kv, *mode;
    const eval_methods *methods;
    const eval_cases *cases;
    const eval_result *results; /* [methods][cases] */
    bool attention; /* attention outputs were compared */
    bool texts;     /* perplexity means something: answers were given */
} eval_report;

/* By method; then, where there is more than one, by task and by context; then, where a method has several settings, the
 * fewest bytes that reach a KL. False where memory runs out. */
bool eval_report_tables(const eval_report *r, FILE *out);

/* KL and error over the position in the answer, in ranges of doubling length. */
bool eval_report_positions(const eval_report *r, FILE *out);

/* NULL where memory runs out. */
json_t *eval_report_json(const eval_report *r);

/* KL against bytes, a curve per kind of method, by gnuplot. `figures` is what eval_report_json returned. */
bool eval_report_svg(const json_t *figures, const char *path, char *error, size_t error_size);

#endif
