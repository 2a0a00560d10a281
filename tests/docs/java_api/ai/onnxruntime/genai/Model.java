// Names of onnxruntime-genai's Java interface that docs/android.md uses: nothing runs.
package ai.onnxruntime.genai;

public final class Model implements AutoCloseable {
  public Model(Config config) throws GenAIException {}

  @Override
  public void close() {}
}
