/* What the user set through environment variables; read once. */
#ifndef DP_LLAMACPP_SETTINGS_H
#define DP_LLAMACPP_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PLUGIN_LAYERS = 1024 }; /* of a model, at most */

typedef struct plugin_settings {
    bool off;                  /* DOUBLEP=off */
    bool stats;                /* DOUBLEP_STATS=1 */
    float epsilon;             /* DOUBLEP_EPSILON: the error budget; 0 makes every step dense */
    uint32_t min_context;      /* DOUBLEP_MIN_CONTEXT: below so many cells llama.cpp's own attention stands */
    uint64_t memory;           /* DOUBLEP_MEMORY: bytes that the copies may take together */
    bool int8;                 /* DOUBLEP_KV=int8: copies in one byte a number, not in 16 bits */
    bool dense[PLUGIN_LAYERS]; /* DOUBLEP_DENSE_LAYERS */
} plugin_settings;

/* Reads the environment into settings; false with a text in `why` where a variable makes no sense. */
bool plugin_settings_read(plugin_settings *settings, char *why, size_t size);

#endif
