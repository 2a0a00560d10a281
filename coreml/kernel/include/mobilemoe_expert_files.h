/* Routed experts read from files: a mobilemoe_expert_source for systems with POSIX files (Linux,
 * Android, macOS, iOS). It is not a part of the kernel, which reads nothing itself, but its caller. */
#ifndef MOBILEMOE_EXPERT_FILES_H
#define MOBILEMOE_EXPERT_FILES_H

#include "mobilemoe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One tensor [E, ...] of a layer, as it lies in a file, in the form that the kernel reads. */
typedef struct mobilemoe_expert_part {
  const char *path;
  uint64_t offset; /* of expert 0, in bytes */
  uint8_t flip;    /* every byte is XORed with it: 0x88 turns MLX's codes (code + 8) into the
                      kernel's two's complement; 0 for all others */
} mobilemoe_expert_part;

typedef struct mobilemoe_expert_parts {
  mobilemoe_expert_part gate_up_codes, gate_up_scales, down_codes, down_scales;
} mobilemoe_expert_parts;

typedef struct mobilemoe_expert_files mobilemoe_expert_files;

/* Opens the files, each once. `layers` [num_hidden_layers] is copied. MOBILEMOE_READ_FAILED for a file that
 * cannot be opened, or is too short for what lies in it. */
MOBILEMOE_API mobilemoe_status mobilemoe_expert_files_create(const mobilemoe_config *config,
                                                             const mobilemoe_expert_parts *layers,
                                                             mobilemoe_expert_files **files,
                                                             mobilemoe_error *error);
/* After every model that reads from it is destroyed. */
MOBILEMOE_API void mobilemoe_expert_files_destroy(mobilemoe_expert_files *files);

/* Fills `source`, which reads from `files`. */
MOBILEMOE_API void mobilemoe_expert_files_source(mobilemoe_expert_files *files, size_t memory_bytes,
                                                 mobilemoe_expert_source *source);

/* 0: what was read does not stay in the system's page cache, so that an expert that is read again comes
 * from storage, as on a machine without memory to spare: for measurements. 1, at first: the system decides. */
MOBILEMOE_API void mobilemoe_expert_files_keep_pages(mobilemoe_expert_files *files, int32_t keep);

#ifdef __cplusplus
}
#endif

#endif /* MOBILEMOE_EXPERT_FILES_H */
