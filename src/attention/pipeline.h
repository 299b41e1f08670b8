/* The stages of decode steps over a team. */
#ifndef DP_ATTENTION_PIPELINE_H
#define DP_ATTENTION_PIPELINE_H

#include "attention/step.h"

/* Times that are told apart; the rest of a call is waiting. */
enum { DP_TIME_SCORE, DP_TIME_SELECT, DP_TIME_SCAN, DP_TIME_GATHER, DP_TIME_MERGE, DP_TIMES };

typedef struct dp_unit dp_unit;

typedef struct dp_pipeline {
    dp_runtime *runtime;
    dp_step *steps; /* [n_steps] */
    size_t n_steps, n_units;
    int n_arenas;
    size_t thread_bytes;  /* what a member needs for its stages; carving rounds it up */
    char *thread_scratch; /* [members][thread_bytes] */
    size_t slot_bytes, n_slots;
    char *slots;        /* [n_slots][slot_bytes] work memory of the units that are open: as many as members at most */
    atomic_bool *taken; /* [n_slots] */
    bool keeps_slots;   /* one for every unit, to be looked at when all are through */
    dp_unit *units;       /* [n_units] the steps' KV heads: those of an arena follow each other, long contexts first */
    size_t *first_unit;   /* [n_arenas + 1] */
    dp_ticket *opened;    /* [n_arenas] units that somebody has begun with */
    dp_ticket *finished;  /* units that are through */
    atomic_uint_least64_t ns[DP_TIMES]; /* sum over the members */
    int n_members; /* of the team that ran */
} dp_pipeline;

/* Carves the pipeline's memory; run once on an empty scratch to learn the size. */
void dp_pipeline_carve(dp_pipeline *pipeline, dp_scratch *scratch);

/* Carves the work memory of a step's KV head, likewise. */
void dp_pipeline_carve_head(const dp_step *step, dp_head_step *head, dp_scratch *scratch);

/* Takes all steps, which have been planned, through their stages. */
void dp_pipeline_run(dp_pipeline *pipeline);

#endif
