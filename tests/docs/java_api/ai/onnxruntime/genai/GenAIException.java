// Names of onnxruntime-genai's Java interface that docs/android.md uses: nothing runs.
package ai.onnxruntime.genai;

public final class GenAIException extends Exception {}
