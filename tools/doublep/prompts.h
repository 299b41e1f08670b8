/* prompts.h: files of prompts with questions and answers: JSON Lines, compressed by gzip or not. */
#ifndef DOUBLEP_TOOL_PROMPTS_H
#define DOUBLEP_TOOL_PROMPTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct prompt_record {
    char *name; /* "task:id" */
    char *context, *question, *answer;
    size_t context_length, question_length; /* in bytes; the texts are terminated, too */
    uint32_t n_context; /* "ctx": tokens that the context was made for; 0 where the line does not say */
} prompt_record;

typedef struct prompt_list {
    prompt_record *records;
    size_t count;
} prompt_list;

/* Reads the lines {"task": "...", "id": ..., "context": "...", "question": "...", "answer": "..."} whose task, or task:id,
 * is `select` (NULL: all), at most `limit` of them. "ctx" is optional, other members are passed over. False and a
 * message where the file cannot be read, a line is wrong or nothing was selected. */
bool prompts_load(prompt_list *list, const char *path, const char *select, size_t limit, char *error, size_t error_size);
void prompts_free(prompt_list *list);

#endif
