/* convert_config.h: what config.json says about a model, in the two forms that `doublep convert` knows. Internal to
 * convert*.c. */
#ifndef DOUBLEP_TOOL_CONVERT_CONFIG_H
#define DOUBLEP_TOOL_CONVERT_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct convert_config {
    bool hugging_face; /* tensor names, and the rotary order of q and k, are those of Hugging Face's Llama */
    uint32_t vocab, width, layers, heads, kv_heads, head_dim, ffn_width, context;
    double rope_base, epsilon;
    bool tied;        /* the embedding is the output matrix too */
    int64_t bos, eos; /* -1 where the config does not say */

    /* Llama 3.1's stretching of slow rotations; factor is 0 where there is none. */
    double rope_factor, rope_low, rope_high, rope_context;
} convert_config;

/* folder/name as a JSON object; NULL and a message on failure. */
json_t *convert_load_json(const char *folder, const char *name, char *error, size_t error_size);

/* Reads folder/config.json; false and a message where it is not one of the two forms, or a number is out of range. */
bool convert_read_config(const char *folder, convert_config *config, char *error, size_t error_size);

/* The factor by which pair `pair` of a head's dimensions turns slower; 1 where there is no stretching. */
double convert_rope_factor(const convert_config *config, uint32_t pair);

#endif
