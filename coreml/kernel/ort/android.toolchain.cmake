# libmobilemoe_ort.so for Android phones, with the NDK's own toolchain file. Not run by this project's tests,
# which have no NDK: they cross-compile with GCC for arm64 Linux.
#
#   cmake -S coreml/kernel -B build-android -G Ninja -DANDROID_NDK=/path/to/ndk \
#       -DCMAKE_TOOLCHAIN_FILE=$PWD/coreml/kernel/ort/android.toolchain.cmake
#   cmake --build build-android --target mobilemoe_ort
#
# NDK r27 and later align libraries to pages of 16 kB by themselves from r28 on; the flag below asks
# both for it, since Play wants it of apps for Android 15 and later.
if(NOT ANDROID_NDK)
  set(ANDROID_NDK $ENV{ANDROID_NDK_HOME})
endif()
set(ANDROID_ABI arm64-v8a CACHE STRING "")
set(ANDROID_PLATFORM android-27 CACHE STRING "As onnxruntime-genai's own library")
set(ANDROID_STL c++_static CACHE STRING "Nothing of C++ crosses the library's border")
set(ANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES ON CACHE BOOL "Pages of 16 kB")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ANDROID_NDK)
include(${ANDROID_NDK}/build/cmake/android.toolchain.cmake)
