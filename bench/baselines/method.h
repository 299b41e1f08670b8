/* method.h: attention over a cache while decoding, as an evaluation sees it. Dense attention, Double-P and the baselines
 * that it is compared with all have this one face, so that they are driven, timed and judged alike.
 *
 * A method indexes the tokens that the cache holds when its state is created; after that tokens come one by one: each
 * is appended to the cache, then given to the method (append), and attended to (attend). */
#ifndef DOUBLEP_BENCH_METHOD_H
#define DOUBLEP_BENCH_METHOD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache.h"

/* ---- Settings: structs whose members have names ---------------------------------------------------------------- */

typedef enum method_kind {
    METHOD_F32,
    METHOD_U32,
    METHOD_I32,
    METHOD_MASK,  /* uint64_t: a set of small numbers, written 0+3+5 */
    METHOD_CHOICE /* an enum whose values from 0 on have names */
} method_kind;

typedef struct method_field {
    const char *name;
    method_kind kind;
    size_t offset;
    const char *const *choices; /* terminated by NULL */
    bool index;                 /* another value needs another index */
} method_field;

/* A line of a table of fields: member m of struct S under its public name. */
#define METHOD_FIELD(S, label, m, needs_index)                                                                   \
    {                                                                                                            \
        .name = label, .offset = offsetof(S, m), .index = needs_index,                                           \
        .kind = _Generic(((S *)0)->m, float: METHOD_F32, uint32_t: METHOD_U32, int32_t: METHOD_I32,              \
                         uint64_t: METHOD_MASK)                                                                  \
    }
#define METHOD_FIELD_CHOICE(S, label, m, names, needs_index)                                                     \
    {                                                                                                            \
        .name = label, .offset = offsetof(S, m), .index = needs_index, .kind = METHOD_CHOICE, .choices = names   \
    }

/* ---- The method -------------------------------------------------------------------------------------------------- */

/* What one attend did. */
typedef struct method_report {
    uint64_t bytes_index; /* read: centroids, mean values, bounds, quantised keys, ... */
    uint64_t bytes_rows;  /* read: keys and values */
    uint64_t own_ns;      /* of its time that belongs to the measurement, not to the attention */
} method_report;

typedef struct method_type {
    const char *name;
    size_t settings_bytes;
    void (*defaults)(void *settings);
    const method_field *fields;
    size_t n_fields;
    /* What is wrong with the settings for this cache, or NULL. */
    const char *(*check)(const void *settings, const method_cache *cache);
    /* The share of the softmax mass that the method means to keep; 0: it aims at none. */
    double (*target)(const void *settings);
    /* Indexes what the cache holds. The cache must outlive the state. NULL and a message on failure. */
    void *(*create)(method_cache *cache, const void *settings, char *error, size_t error_size);
    /* Takes other settings with the same index, and forgets the tokens that came after create; the cache has forgotten
     * them already. False where that cannot be done: create anew. */
    bool (*restart)(void *state, const void *settings);
    /* The cache's layer got one token, whose key and value are k and v, [n_kv_heads][dim]. */
    bool (*append)(void *state, uint32_t layer, const float *k, const float *v);
    /* out[n_query_heads][value_dim] from q[n_query_heads][key_dim], the queries of the layer's last token. */
    bool (*attend)(void *state, uint32_t layer, const float *q, float *out, method_report *report);
    /* Sets kept[h * stride + t] for every token t that the latest attend, in this layer, used for KV head h, exactly or
     * by an estimate that it was part of. kept is zeroed before. */
    void (*mark)(const void *state, uint32_t layer, uint8_t *kept, size_t stride);
    void (*free)(void *state); /* NULL is allowed */
} method_type;

extern const method_type method_dense, method_double_p, method_double_p_paper; /* the library's */
extern const method_type method_quest, method_quest_twilight, method_retroinfer, method_oracle;

/* All of them, terminated by NULL. */
extern const method_type *const method_types[];

/* The type called by the first `length` characters of name; NULL where there is none. */
const method_type *method_find(const char *name, size_t length);

/* Sets one field from "name=value"; false and a message where there is no such field or value. */
bool method_set(const method_type *type, void *settings, const char *assignment, size_t length, char *error,
                size_t error_size);

/* What the settings of one of the library's own methods say; false for another type. The sequence's shape is not part of them,
 * and its type is DP_TYPE_COUNT where it is to be the cache's. */
bool method_library_settings(const method_type *type, const void *settings, const dp_attention_params **params,
                             const dp_sequence_config **sequence);

/* Dense attention over rows of the cache's type: what the others are compared with. */
bool method_is_reference(const method_type *type, const void *settings);

/* The value of a field as method_set takes it. */
void method_get(const method_field *field, const void *settings, char *text, size_t size);

/* Whether an index made for settings a serves settings b. */
bool method_same_index(const method_type *type, const void *a, const void *b);

#endif
