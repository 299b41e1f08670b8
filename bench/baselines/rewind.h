/* rewind.h: taking a sequence back to a length it had before, so that one index serves many runs. */
#ifndef DOUBLEP_BENCH_REWIND_H
#define DOUBLEP_BENCH_REWIND_H

#include <stdbool.h>
#include <stdint.h>

#include "doublep/doublep.h"

typedef struct sequence_mark sequence_mark;

/* Remembers how long the layers are; NULL where there is no memory. */
sequence_mark *sequence_mark_create(const dp_sequence *sequence);
void sequence_mark_free(sequence_mark *mark); /* NULL is allowed */

/* Forgets the tokens that came after the mark. False, and nothing changed, where tokens were clustered since. */
bool sequence_rewind(dp_sequence *sequence, const sequence_mark *mark);

#endif
