/* progress.h: how far a long step is, on stderr: a bar on a terminal, a few lines with percentages elsewhere. */
#ifndef DOUBLEP_TOOL_PROGRESS_H
#define DOUBLEP_TOOL_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct progress {
    const char *label;
    bool terminal;
    uint64_t start_ns, drawn_ns;
    unsigned next_percent; /* of the next line, where it is not a terminal */
} progress;

void progress_start(progress *p, const char *label);

/* A model_progress_fn: user is a progress. */
void progress_show(void *user, size_t done, size_t total);

/* Takes the bar away. */
void progress_end(progress *p);

#endif
