// Names of onnxruntime-genai's Java interface that docs/android.md uses: nothing runs.
package ai.onnxruntime.genai;

public class TokenizerStream implements AutoCloseable {
  public String decode(int token) throws GenAIException {
    return null;
  }

  @Override
  public void close() {}
}
