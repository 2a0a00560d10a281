#include "mobilemoe_expert_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace {

class File {
 public:
  explicit File(const char* name)
      : path(name),
        descriptor(open(name, O_RDONLY | O_CLOEXEC)),
        failure(descriptor < 0 ? errno : 0) {
#if defined(POSIX_FADV_RANDOM)
    // Nothing behind an expert is needed next: no reading ahead.
    if (descriptor >= 0) posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM);
#endif
  }
  ~File() {
    if (descriptor >= 0) close(descriptor);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string path;
  const int descriptor;
  const int failure;  // 0, or why it was not opened
};

struct Part {
  const File* file;
  uint64_t offset;
  size_t bytes;  // of one expert
  uint8_t flip;
};

struct Layer {
  Part gate_up_codes, gate_up_scales, down_codes, down_scales;
};

void forget_pages(int descriptor, uint64_t offset, size_t bytes) {
#if defined(POSIX_FADV_DONTNEED)
  // Pages that are not wholly within the range would stay: their neighbours may go too.
  constexpr uint64_t kPages = 64 * 1024;
  const uint64_t begin = offset / kPages * kPages;
  const uint64_t end = (offset + bytes + kPages - 1) / kPages * kPages;
  posix_fadvise(descriptor, static_cast<off_t>(begin), static_cast<off_t>(end - begin),
                POSIX_FADV_DONTNEED);
#else  // macOS: F_NOCACHE was set
  static_cast<void>(descriptor), static_cast<void>(offset), static_cast<void>(bytes);
#endif
}

mobilemoe_status fail(mobilemoe_error* error, mobilemoe_status status, const char* path,
                      const char* what, const char* why) {
  if (error != nullptr) {
    error->status = status;
    std::snprintf(error->message, sizeof error->message, "%.140s%s%s.", path, what, why);
  }
  return status;
}

}  // namespace

struct mobilemoe_expert_files {
  std::vector<std::unique_ptr<File>> files;
  std::vector<Layer> layers;
  std::atomic<bool> keep_pages{true};

  const File& open_once(const char* path) {
    for (const auto& file : files) {
      if (file->path == path) return *file;
    }
    files.push_back(std::make_unique<File>(path));
    return *files.back();
  }

  // False, with a sentence in `message`, unless all of the expert's part came.
  bool read(const Part& part, int32_t layer, int32_t expert, uint8_t* to, char* message) const {
    const uint64_t begin = part.offset + static_cast<uint64_t>(expert) * part.bytes;
    for (size_t done = 0; done < part.bytes;) {
      const ssize_t got = pread(part.file->descriptor, to + done, part.bytes - done,
                                static_cast<off_t>(begin + done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        std::snprintf(message, MOBILEMOE_MESSAGE_BYTES,
                      "%.140s: expert %d of layer %d cannot be read: %s.", part.file->path.c_str(),
                      static_cast<int>(expert), static_cast<int>(layer),
                      got == 0 ? "the file became shorter while it was in use"
                               : std::strerror(errno));
        return false;
      }
      done += static_cast<size_t>(got);
    }
    if (!keep_pages.load(std::memory_order_relaxed)) {
      forget_pages(part.file->descriptor, begin, part.bytes);
    }
    if (part.flip != 0) {
      for (size_t i = 0; i < part.bytes; ++i) to[i] ^= part.flip;
    }
    return true;
  }

  static int32_t read_expert(void* owner, int32_t layer, int32_t expert,
                             const mobilemoe_expert_buffers* buffers, char* message) {
    const auto& self = *static_cast<const mobilemoe_expert_files*>(owner);
    const Layer& parts = self.layers[layer];
    const bool fine =
        self.read(parts.gate_up_codes, layer, expert, buffers->gate_up_codes, message) &&
        self.read(parts.gate_up_scales, layer, expert, buffers->gate_up_scales, message) &&
        self.read(parts.down_codes, layer, expert, buffers->down_codes, message) &&
        self.read(parts.down_scales, layer, expert, buffers->down_scales, message);
    return fine ? 0 : 1;
  }
};

mobilemoe_status mobilemoe_expert_files_create(const mobilemoe_config* config,
                                               const mobilemoe_expert_parts* layers,
                                               mobilemoe_expert_files** files,
                                               mobilemoe_error* error) {
  if (files != nullptr) *files = nullptr;
  if (config == nullptr || layers == nullptr || files == nullptr ||
      mobilemoe_least_expert_memory(config) == 0) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "expert_files_create",
                ": a pointer is NULL, or there are no routed experts of these sizes", "");
  }
  // Values of down, [w, d]; gate_up has twice as many. Two to a byte; 32 share a scale of 2 bytes.
  const size_t values = static_cast<size_t>(config->hidden_size) * config->intermediate_size;
  try {
    auto made = std::make_unique<mobilemoe_expert_files>();
    mobilemoe_status status = MOBILEMOE_OK;
    const auto part = [&](const mobilemoe_expert_part& from, size_t bytes) {
      const File& file = made->open_once(from.path);
      struct stat found;
      if (status != MOBILEMOE_OK) {
        // The first failure is told.
      } else if (file.failure != 0) {
        status = fail(error, MOBILEMOE_READ_FAILED, from.path, " cannot be opened: ",
                      std::strerror(file.failure));
      } else if (fstat(file.descriptor, &found) != 0) {
        status = fail(error, MOBILEMOE_READ_FAILED, from.path, " cannot be read: ",
                      std::strerror(errno));
      } else if (static_cast<uint64_t>(found.st_size) <
                 from.offset + static_cast<uint64_t>(config->num_local_experts) * bytes) {
        status = fail(error, MOBILEMOE_READ_FAILED, from.path, " is too short for its experts", "");
      }
      return Part{&file, from.offset, bytes, from.flip};
    };
    for (int32_t i = 0; i < config->num_hidden_layers; ++i) {
      made->layers.push_back({part(layers[i].gate_up_codes, values),
                              part(layers[i].gate_up_scales, values / 8),
                              part(layers[i].down_codes, values / 2),
                              part(layers[i].down_scales, values / 16)});
    }
    if (status != MOBILEMOE_OK) return status;
    *files = made.release();
  } catch (const std::bad_alloc&) {
    return fail(error, MOBILEMOE_OUT_OF_MEMORY, "No memory for the places of experts", "", "");
  }
  if (error != nullptr) *error = {MOBILEMOE_OK, ""};
  return MOBILEMOE_OK;
}

void mobilemoe_expert_files_destroy(mobilemoe_expert_files* files) { delete files; }

void mobilemoe_expert_files_source(mobilemoe_expert_files* files, size_t memory_bytes,
                                   mobilemoe_expert_source* source) {
  *source = {mobilemoe_expert_files::read_expert, files, memory_bytes};
}

void mobilemoe_expert_files_keep_pages(mobilemoe_expert_files* files, int32_t keep) {
  files->keep_pages = keep != 0;
#if defined(F_NOCACHE)
  for (const auto& file : files->files) fcntl(file->descriptor, F_NOCACHE, keep == 0);
#endif
}
