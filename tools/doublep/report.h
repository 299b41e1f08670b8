/* report.h: what a session measured, as a table with a column per method and as JSON. */
#ifndef DOUBLEP_TOOL_REPORT_H
#define DOUBLEP_TOOL_REPORT_H

#include <stdio.h>

#include <jansson.h>

#include "options.h"
#include "session.h"

/* Everything a report speaks of; n answers, one per method of the options. */
typedef struct report {
    const model_options *options;
    const model_context *context;
    const session_prompt *prompt;
    const session_prefill_result *prefill;
    const session_answer *answers;
} report;

/* Means over the tokens that an answer decoded. */
typedef struct report_means {
    double total_ms, attention_ms, append_ms;
    double bytes, dense_bytes;
} report_means;

report_means report_get_means(const session_answer *answer);

void report_table(const report *r, FILE *out);

/* One object: with one method its figures are members, with several they are in the array "methods". NULL where memory
 * runs out. */
json_t *report_json(const report *r);

#endif
